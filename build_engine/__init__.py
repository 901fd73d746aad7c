"""TensorRT engines from a bundle's graph: built, verified, measured, and kept by fingerprint. `python -m build_engine --help`."""

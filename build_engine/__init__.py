"""TensorRT engines from a bundle's graph: built, verified, measured, and kept by fingerprint. `python -m build_engine --help`."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime's wheels report to their maker: a shop's programs tell nobody

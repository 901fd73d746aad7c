"""TensorRT engines from a bundle's graph. Nothing here yet: until it is, the service runs on ONNX Runtime (see the README)."""

"""The service: change events in, predictions to Redis, enriched events out."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime's wheels report to their maker: a shop's programs tell nobody


__version__ = "0.1.0"

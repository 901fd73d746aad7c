"""The multi-task model of book listings.

`listing`, `signature`, `features` and `bundle` never import torch: serving imports them, so that what the model sees in
production is made by the code that made its training data.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime's wheels report to their maker: a shop's programs tell nobody

"""Suggest the five reply templates that a support advocate most likely wants next."""

import os

# ONNX Runtime reports the models that it opens to its vendor from 1.29 on. It reads this when it is imported, which
# nothing does earlier.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

"""From support transcripts to the five reply templates an advocate most likely wants next."""

import os

# From 1.29 on ONNX Runtime reports to its maker which models it opens. It looks here when it is imported, which nothing
# does before this.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

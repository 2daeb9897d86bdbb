"""A run to a verified ONNX bundle."""

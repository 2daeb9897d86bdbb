"""A run -> a verified ONNX bundle."""

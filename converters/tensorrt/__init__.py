"""An ONNX bundle to a TensorRT engine. No JAX."""

"""An ONNX bundle -> a TensorRT engine. No JAX."""

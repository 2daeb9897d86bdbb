"""A bundle -> a Triton model repository. No JAX."""

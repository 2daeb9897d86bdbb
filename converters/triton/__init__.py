"""A bundle to a Triton model repository. No JAX."""

"""The server of a bundle. No JAX, no Flax, nothing of training."""

"""What serves a bundle: no JAX, no Flax, nothing of training."""

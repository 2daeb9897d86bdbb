"""Architectures, operation counts and accelerators as numbers alone. No JAX."""

"""Bundles: the folders that serve, and the checks that run before one is opened. No JAX."""

"""The folder that serves, and the checks before it is opened. No JAX."""

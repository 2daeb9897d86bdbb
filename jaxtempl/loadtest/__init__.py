"""Requests at given rates to a running server, and how long the answers took: the paper's Table 4. No JAX."""

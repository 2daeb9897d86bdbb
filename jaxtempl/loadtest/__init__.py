"""Open-loop load test of a running server, reported as the paper's Table 4. No JAX."""

"""Statistics of online experiments: estimates, trends, safety stops, power and checks. No JAX."""

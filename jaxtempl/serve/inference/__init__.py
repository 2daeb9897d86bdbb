"""From messages to suggestions: the window, the network, the ranking. No JAX."""

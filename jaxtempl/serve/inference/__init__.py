"""Inference from messages to suggestions: window, network and ranking. No JAX."""

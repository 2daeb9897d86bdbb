"""Scaling studies: a matrix of adaptations and fine-tunings, the laws fitted to them, and the advice that follows.

The package does not import JAX: each training runs as its own process.
"""

"""The scaling study: a matrix of adaptations and fine-tunings, run by the project's own commands, and what it says.

No JAX in here: each training is its own process.
"""

"""A prepared dataset as training and evaluation read it."""

"""The model families, and the weights that fill them."""

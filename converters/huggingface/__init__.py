"""A run to a folder that transformers loads."""

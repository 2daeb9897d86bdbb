"""A run -> a folder that transformers loads."""

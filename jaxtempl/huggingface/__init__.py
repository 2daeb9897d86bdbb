"""Hugging Face folders: fetching, checking, reading and writing them."""

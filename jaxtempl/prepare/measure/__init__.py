"""Recall and precision of redaction on values planted into the user's own text."""

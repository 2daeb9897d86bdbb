"""Redaction: a pure function from the messages of a case to messages with placeholders. No JAX."""

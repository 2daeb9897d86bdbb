"""Suggestions and their outcomes: tables, store and export."""

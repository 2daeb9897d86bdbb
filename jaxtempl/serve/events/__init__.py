"""The event store: tables, writer and export of suggestions and their outcomes."""

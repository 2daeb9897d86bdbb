"""Converters from a run to formats that other software loads."""

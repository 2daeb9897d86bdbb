"""Measuring a run on held-out cases."""

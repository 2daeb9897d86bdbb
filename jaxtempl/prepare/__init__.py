"""Transcripts to a dataset: cases, labels and packed rows in one folder."""

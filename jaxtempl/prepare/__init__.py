"""Preparation of a dataset from transcripts: cases, labels and packed rows in one folder."""

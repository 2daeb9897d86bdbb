"""The folder of one training: its files, checkpoints and provenance."""

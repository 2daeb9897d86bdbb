"""From support transcripts to the five reply templates an advocate most likely wants next."""

__version__ = "0.1.0"

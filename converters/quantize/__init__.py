"""Eight bits, behind an accuracy gate."""

"""Assignment of pairs of advocate and case to the arms of experiments; imports nothing of the server."""

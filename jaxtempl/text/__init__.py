"""Cases as text: records, messages, tokenization, and the window that a classifier reads."""

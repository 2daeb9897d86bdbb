"""Generated support cases for tests, scale and load."""

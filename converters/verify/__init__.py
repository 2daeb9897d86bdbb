"""How a converted network compares with the run that it came from."""

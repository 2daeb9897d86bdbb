"""One module a command: flags in, one call, what is printed."""

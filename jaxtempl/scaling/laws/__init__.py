"""Laws of scaling: forms, how they are fitted, how sure that is, and when a law is not one. Numbers in, numbers out."""

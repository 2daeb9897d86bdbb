"""Memory, time and cost of a training, estimated without running it."""

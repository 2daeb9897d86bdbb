"""The one training loop, its objectives, and the two phases that use it."""

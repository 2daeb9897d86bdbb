"""Meshes, sharding rules, collectives, and the processes that train together."""

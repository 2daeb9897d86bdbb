"""Meshes, sharding rules, collectives, and groups of training processes."""

"""Quantization to eight bits, behind an accuracy gate."""

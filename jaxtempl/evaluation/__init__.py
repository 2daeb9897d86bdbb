"""Evaluation of a run on held-out cases: metrics, baselines, held-out loss, zero-shot scoring and their report."""

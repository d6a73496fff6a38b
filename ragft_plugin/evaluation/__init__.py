"""Evaluation: outcomes, metrics, off-policy estimates, frontier, decision log, drift and report."""

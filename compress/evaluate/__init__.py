"""Proof: perplexity, drift, comparison, report."""

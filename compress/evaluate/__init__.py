"""Measurements of a checkpoint: drift, perplexity, task scores, speed, and the report that shows them."""

"""Drift: the distance between a candidate's and the reference's predictions. KL, agreement, perplexity, blocks."""

"""Verdicts over time: the store and the nightly watch."""

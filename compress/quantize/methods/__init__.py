"""Rounding methods as pure functions of a weight and its statistics; one method per file."""

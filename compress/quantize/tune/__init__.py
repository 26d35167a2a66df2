"""Training of scales and norms after rounding."""

"""Model architecture: a table of families, models that run block by block, and smaller students."""

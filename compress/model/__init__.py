"""Architecture: families as a table, one block at a time, and smaller students. Imports transformers."""

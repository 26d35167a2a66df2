"""Checkpoints on disk: read, write, formats, records and the validator."""

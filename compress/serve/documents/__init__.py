"""Uploaded files as text. Each file is read in the sandbox."""

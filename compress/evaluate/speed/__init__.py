"""Memory and speed: measured on a runtime, or predicted for a GPU from headers."""

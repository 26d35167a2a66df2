"""Serving with vLLM: the CPU kernel plugin and what the command line needs to start it."""

"""Quantization: turn the weights of a model, and statistics of their inputs, into codes."""

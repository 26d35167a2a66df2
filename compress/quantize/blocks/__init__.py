"""Quantize one decoder block at a time: its inputs, its statistics, the order of its stages, and its memory."""

"""Disk: safetensors in and out, bit layouts, formats, the validator."""

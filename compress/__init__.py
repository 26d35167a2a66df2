"""Make language models smaller: distill, quantize, check, verify, compare, serve."""

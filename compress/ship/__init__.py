"""Ship: the same quantized model in the layout of another runtime."""

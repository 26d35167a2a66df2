"""Ship: the same quantized model in the format of another runtime, folder or file."""

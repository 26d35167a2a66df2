"""Import of .gguf files: a bounded reader, tables of the keys and tensors of each architecture, and the tokenizer."""

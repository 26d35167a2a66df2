"""Write a quantized checkpoint as one .gguf file for llama.cpp, with the same codes and scales."""

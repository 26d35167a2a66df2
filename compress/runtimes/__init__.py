"""What runs a model: transformers or vLLM behind one protocol, and the CPU kernel that vLLM lacks."""

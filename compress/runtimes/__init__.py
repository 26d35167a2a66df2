"""Runtimes run a model: transformers and vLLM, behind one protocol. Also the CPU kernel that vLLM lacks."""

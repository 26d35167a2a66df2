"""An OpenAI-compatible server on transformers, for machines without vLLM."""

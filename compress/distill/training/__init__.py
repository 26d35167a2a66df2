"""The training loop, its saved state, and its optional parts: LoRA, hidden-state alignment, gradient checkpointing."""

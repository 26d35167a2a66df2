"""The teacher's own answers to prompts, as text to distill from."""

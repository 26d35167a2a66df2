"""Distillation: train a smaller student to match a teacher."""

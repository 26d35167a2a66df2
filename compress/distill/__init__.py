"""Teacher to student: losses, training, the distillation job."""

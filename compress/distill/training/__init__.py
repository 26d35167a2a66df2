"""The training loop, its state on disk, and what a stage may add to it."""

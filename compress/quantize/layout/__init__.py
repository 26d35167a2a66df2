"""Choose the bits of each weight, and plan the exact bytes on disk."""

"""Which weights get how many bits, and what that weighs on disk."""

"""The door: what a checkpoint must fulfil before any command works on it. One file per concern, rules as tables."""

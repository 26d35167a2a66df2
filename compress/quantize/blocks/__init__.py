"""One decoder block at a time: its inputs, its statistics, the order of work, its memory."""

"""From weights and statistics to codes: one method, one file."""

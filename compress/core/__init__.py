"""What every other room stands on: errors, configuration, the integer grid, bit packing, atomic files."""

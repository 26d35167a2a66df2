"""Basics that all other packages use: errors, configuration, the integer grid, bit packing, atomic files."""

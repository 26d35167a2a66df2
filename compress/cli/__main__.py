"""`python -m compress.cli`, for launchers of several processes."""

from compress.cli import cli

cli(prog_name="qcompress")

"""Run the command line by `python -m compress.cli`, as launchers of several processes do."""

from compress.cli import cli

cli(prog_name="qcompress")

"""Run the command line by `python -m compress.cli`, as torchrun and accelerate launch do."""

from compress.cli import cli

cli(prog_name="qcompress")

"""The command line: read options, call one function, print what it returns. No work happens here.

One file per command; a command's heavy imports stay inside its function, so `qcompress --help` is instant.
"""

import importlib
import os
from pathlib import Path
from typing import Any

import click

from compress.core.errors import QCompressError

SPINS = "10000"  # a quarter of a millisecond: most waits are shorter


def alone() -> bool:
    """Whether no thread but this one wants to run on the machine right now, as far as Linux tells."""
    try:
        return Path("/proc/loadavg").read_text().split()[3].startswith("1/")
    except (OSError, IndexError):
        return False


# Read when torch loads OpenMP, so it is set before. Threads that sleep while they wait for one another wake up late;
# beside another program, threads that spin starve those that work. NOTES.md has figures of both.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ |= {"GOMP_SPINCOUNT": SPINS} if alone() else {"OMP_WAIT_POLICY": "PASSIVE"}

COMMANDS = (
    "import",
    "init-student",
    "generate",
    "capture",
    "cache",
    "distill",
    "plan",
    "quantize",
    "check",
    "verify",
    "compare",
    "eval",
    "bench",
    "history",
    "watch",
    "run",
)
MODULES = {"import": "import_gguf", "init-student": "init_student"}  # where Python does not allow the name


class LazyGroup(click.Group):
    """Finds the command NAME in compress.cli.NAME, and shows every expected error as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"compress.cli.{MODULES.get(name, name)}").command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            raise QCompressError(" ".join(str(error).split()) or type(error).__name__) from error


@click.group(cls=LazyGroup)
@click.version_option(package_name="qcompress")
def cli() -> None:
    """Make language models small enough for the edge, and prove what was lost on the way."""

"""The options that say which student is cut out of a teacher: those of `distill` and of `init-student`."""

from collections.abc import Callable
from typing import Any

import click

from compress.distill.config import IMPORTANCES

OPTIONS = (
    click.option("--blocks", type=click.IntRange(1), help="How many of the teacher's blocks to keep."),
    click.option("--hidden-size", type=click.IntRange(1), help="Width of the student.  [default: the teacher's]"),
    click.option("--intermediate-size", type=click.IntRange(1), help="Channels of its MLPs."),
    click.option("--num-layers", type=click.IntRange(1), help="Its blocks."),
    click.option("--num-heads", type=click.IntRange(1), help="Its query heads."),
    click.option("--num-kv-heads", type=click.IntRange(1), help="Its key and value heads."),
    click.option(
        "--importance",
        type=click.Choice(IMPORTANCES),
        help="What chooses channels and heads of a narrower student.  [default: activations, those on --data]",
    ),
)


def shape_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All of OPTIONS, in their order."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command

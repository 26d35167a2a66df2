"""Command-line options that several scripts share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def out_option(default: str, text: str) -> Decorator:
    """The option -o/--out: a path, with `text` as its help."""
    return click.option(
        "-o", "--out", type=click.Path(path_type=Path), default=Path(default), show_default=True, help=text
    )

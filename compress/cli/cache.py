"""qcompress cache: inspect what `qcompress capture` stored."""

from pathlib import Path

import click

from compress.cli.console import emit
from compress.cli.options import Command, json_option


@click.group("cache")
def command() -> None:
    """Inspect a cache of teacher outputs, as `qcompress capture` stores it.

    \b
    qcompress cache inspect cache
    """


@command.command("inspect", cls=Command)
@click.argument("cache", type=click.Path(path_type=Path))
@json_option
def inspect(cache: Path, as_json: bool) -> None:
    """Print the contents of CACHE, check the checksum of every shard, and list missing shards.

    \b
    qcompress cache inspect cache
    """
    from compress.distill.targets.inspect import inspect_cache

    emit(inspect_cache(cache), as_json=as_json)

"""qcompress cache: inspect a cache that `qcompress capture` wrote."""

from pathlib import Path

import click

from compress.cli.console import emit
from compress.cli.options import Command, json_option


@click.group("cache")
def command() -> None:
    """Inspect caches of teacher outputs, written by `qcompress capture`.

    \b
    qcompress cache inspect cache
    """


@command.command("inspect", cls=Command)
@click.argument("cache", type=click.Path(path_type=Path))
@json_option
def inspect(cache: Path, as_json: bool) -> None:
    """Print the contents of the directory CACHE, and verify the checksum of every shard.

    Missing shards are listed.

    \b
    qcompress cache inspect cache
    """
    from compress.distill.targets.inspect import inspect_cache

    emit(inspect_cache(cache), as_json=as_json)

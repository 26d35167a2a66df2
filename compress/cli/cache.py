"""qcompress cache: look into what a capture wrote."""

from pathlib import Path

import click

from compress.cli.console import emit, json_option


@click.group("cache")
def command() -> None:
    """Caches of what a teacher said, as `qcompress capture` writes them.

    \b
    qcompress cache inspect cache
    """


@command.command("inspect")
@click.argument("cache", type=click.Path(path_type=Path))
@json_option
def inspect(cache: Path, as_json: bool) -> None:
    """Say what CACHE holds, check every shard's checksum, and name the shards that are missing.

    \b
    qcompress cache inspect cache
    """
    from compress.distill.targets.inspect import inspect_cache

    emit(inspect_cache(cache), as_json=as_json)

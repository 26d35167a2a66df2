"""qcompress backends: list, install and remove other quantizers."""

from pathlib import Path

import click

from compress.cli.console import emit, print_written, report
from compress.cli.model_path import FilledPath
from compress.cli.options import Command, json_option, shared_option
from compress.core.backend_config import BACKENDS

NAME = click.Choice(list(BACKENDS))


@click.group("backends", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List, install and remove other quantizers for `qcompress quantize --backend`.

    Each lives in a Python environment of its own, below ~/.cache/qcompress/backends or $QCOMPRESS_BACKENDS. Without a
    command, all backends are listed.

    \b
    qcompress backends
    qcompress backends install auto-round
    """
    from compress.backends.environment import list_backends

    if context.invoked_subcommand is None:
        emit(list_backends(), as_json=False)


@command.command("list", cls=Command)
@json_option
def list_command(as_json: bool) -> None:
    """List all backends, with their methods, sizes on disk and versions of Python.

    \b
    qcompress backends list --json
    """
    from compress.backends.environment import list_backends

    emit(list_backends(), as_json=as_json)


@command.command("install", cls=Command)
@click.argument("name", metavar="NAME", type=NAME)
@shared_option(
    "--python",
    group="Resources",
    type=FilledPath(path_type=Path),
    help="Python to build the environment on.  [default: the one that runs qcompress]",
)
@json_option
def install_command(name: str, python: Path | None, as_json: bool) -> None:
    """Install the backend NAME. Its packages are downloaded and compared with the hashes of a lock.

    Only torch has no hash: its build depends on the machine, and comes from the index that pip is configured for. Free
    disk space and Python's version are checked first. An installation that fails or is killed leaves nothing behind
    that would be used.

    \b
    qcompress backends install llm-compressor
    qcompress backends install autoawq --python python3.11
    """
    from compress.backends.environment import folder_bytes, interpreter_of
    from compress.backends.install import install
    from compress.backends.table import find_backend

    folder = install(find_backend(name), python=python, report=report)
    row = {"backend": name, "path": str(interpreter_of(folder)), "size": folder_bytes(folder)}
    emit(row, as_json=as_json)
    print_written(folder, next_command=f"qcompress quantize MODEL --backend {name} -o OUT", as_json=as_json)


@command.command("remove", cls=Command)
@click.argument("name", metavar="NAME", type=NAME)
@json_option
def remove_command(name: str, as_json: bool) -> None:
    """Remove the environments of the backend NAME, and those of its older locks.

    \b
    qcompress backends remove gptqmodel
    """
    from compress.backends.environment import remove
    from compress.backends.table import find_backend

    emit([{"backend": name, "removed": str(path)} for path in remove(find_backend(name))], as_json=as_json)


@command.command("path", cls=Command)
@click.argument("name", metavar="NAME", type=NAME)
@json_option
def path_command(name: str, as_json: bool) -> None:
    """Print the Python interpreter of the backend NAME. Exit code 1 if it is not installed.

    \b
    qcompress backends path auto-round
    """
    from compress.backends.environment import find_interpreter
    from compress.backends.table import find_backend

    path = str(find_interpreter(find_backend(name)))
    if as_json:
        emit({"backend": name, "path": path}, as_json=True)
    else:
        click.echo(path)

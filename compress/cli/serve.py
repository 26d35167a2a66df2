"""qcompress serve: checkpoints behind a chat page and an OpenAI-compatible API."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.console import report, results
from compress.cli.model_path import MODEL
from compress.cli.options import Command, dry_run_option, make_settings, settings_options, shared_option
from compress.core.errors import QCompressError
from compress.serve.settings import TOKEN_VARIABLE, Address, Engines, check_packages

if TYPE_CHECKING:
    from compress.serve.plan import PlannedEngine


@click.command("serve", cls=Command)
@click.argument("checkpoints", metavar="[CKPT...]", nargs=-1, type=MODEL)
@settings_options(Address, Engines)
@shared_option(
    "--token",
    group="Essentials",
    envvar=TOKEN_VARIABLE,
    help=f"Secret that clients must send, at least 12 characters. Prefer the environment variable "
    f"{TOKEN_VARIABLE}, because other users can read command lines.",
)
@dry_run_option
def command(checkpoints: tuple[Path, ...], token: str | None, dry_run: bool, **options: Any) -> None:
    """Serve each CKPT with vLLM: a chat page for people, and /v1/chat/completions for programs.

    Each CKPT must pass `qcompress check`, except with --upstream. On a GPU, context, concurrent requests and queue
    follow from its memory. On a CPU, the KV cache has 2 GiB. Without vLLM, transformers answers slowly, with 4,096
    tokens and one request at a time. The page shows the answers of several checkpoints to one question side by side. It
    reads pdf, docx, xlsx, xls, csv, txt, md and json files in a sandbox, and stores nothing on disk.

    \b
    qcompress serve qwen-awq
    qcompress serve qwen qwen-awq --context 8192
    qcompress serve qwen-awq --tensor-parallel-size 4 --host 0.0.0.0
    qcompress serve --upstream http://127.0.0.1:8000
    """
    check_packages()
    address, engines = make_settings(Address, options), make_settings(Engines, options)
    access = address.access(token)
    if not checkpoints and engines.upstream is None:
        raise click.UsageError("Missing argument 'CKPT', or --upstream URL.")
    from compress.serve import plan, run

    def started() -> None:
        results.print(f"Serving at {page_url(address)}; Ctrl-C ends it.", markup=False)

    if engines.upstream is not None:
        if dry_run:
            raise QCompressError("--dry-run: nothing is started with --upstream; leave one of them out")
        return run.serve_upstream(checkpoints, address, access, engines, started=started)
    planned = plan.plan_engines(checkpoints, engines)
    for one in planned:
        print_sizes(one)
        if dry_run:
            print_command(one)
    if not dry_run:
        run.serve_engines(planned, address, access, engines, report=report, started=started)


def page_url(address: Address) -> str:
    """The URL of the page. The token is not part of it."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"http://{host}:{address.port}"


def print_sizes(planned: "PlannedEngine") -> None:
    """Print the sizes of an engine, and why they are so."""
    sizes = planned.sizes
    results.print(
        f"{planned.name}: {planned.runtime}, context of {sizes.context:,} tokens, {sizes.sequences} at once, "
        f"queue of {sizes.queue} ({sizes.facts})",
        markup=False,
    )


def print_command(planned: "PlannedEngine") -> None:
    """Print the command line of an engine, with its variables but without its key."""
    command = planned.command(Path("SOCKET"))
    variables = [f"{name}={value}" for name, value in command.variables.items() if value != command.key]
    results.print(f"  {' '.join(variables)} {shlex.join(command.arguments)}", markup=False)

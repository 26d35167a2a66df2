"""qcompress capture: what a teacher says of a text, on disk."""

from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, json_option, report
from compress.distill.config import CODECS, DTYPES, PACKINGS, TEMPERATURE, CaptureConfig


@click.command("capture")
@click.argument("teacher", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory for the cache.")
@click.option("--codec", type=click.Choice(CODECS), default="hidden", show_default=True, help="What is kept.")
@click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    help=f"That of the training; hybrid and topk hold for one.  [default: that of distill, {TEMPERATURE:g}]",
)
@click.option("--top-k", type=click.IntRange(1), help="Likeliest tokens kept.  [default: hybrid 12, topk 50]")
@click.option("--samples", type=click.IntRange(1), default=10, show_default=True, help="Draws from the rest; hybrid.")
@click.option("--renormalise/--raw", default=True, show_default=True, help="Whether topk adds up to 1.")
@click.option("--dtype", type=click.Choice([*DTYPES, "float32"]), help="Of hidden states.  [default: the teacher's]")
@click.option("--data", multiple=True, default=("default",), show_default=True, help="NAME or FILE, with =WEIGHT.")
@click.option(
    "--n-samples", type=click.IntRange(1), default=1024, show_default=True, help="Windows, if there are so many."
)
@click.option("--seq-len", type=click.IntRange(2), default=256, show_default=True, help="Tokens per window.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--shard-windows", type=click.IntRange(1), default=64, show_default=True, help="Windows per file.")
@click.option(
    "--packing", type=click.Choice(PACKINGS), default="documents", show_default=True, help="That of the training."
)
@click.option("--rank", type=click.IntRange(0), default=0, envvar="RANK", help="This process, of --ranks.")
@click.option("--ranks", type=click.IntRange(1), default=1, envvar="WORLD_SIZE", help="Processes that share the work.")
@json_option
def command(teacher: Path, out: Path, rank: int, ranks: int, as_json: bool, **options: Any) -> None:
    """Write what TEACHER (a directory) says of a text into a cache, for `qcompress distill --cache`.

    hidden keeps final hidden states: exact, at any temperature. hybrid keeps the likeliest tokens and a sample of all
    others: unbiased, below 100 bytes per token, at one --temperature. topk keeps the likeliest alone and is biased.
    Interrupted, or out of disk, the same command goes on where it stopped.

    \b
    qcompress capture qwen2.5-7b --codec hybrid --data chats.jsonl --n-samples 50000 --out cache
    qcompress capture qwen2.5-7b --codec hybrid --data chats.jsonl --rank 1 --ranks 4 --out cache
    qcompress cache inspect cache
    qcompress distill qwen2.5-7b --student qwen2.5-1.5b --data chats.jsonl --cache cache --out student
    """
    settings = CaptureConfig(**options)
    from compress.distill.targets.capture import capture_teacher

    emit(capture_teacher(teacher, out, settings, rank=rank, ranks=ranks, report=report), as_json=as_json)

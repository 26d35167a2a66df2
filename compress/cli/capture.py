"""qcompress capture: store a teacher's outputs for a text on disk."""

from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, print_written, report, size_fact
from compress.cli.model_path import MODEL
from compress.cli.options import Command, json_option, make_settings, out_option, restart_option, settings_options
from compress.distill.config import CaptureConfig


@click.command("capture", cls=Command)
@click.argument("teacher", type=MODEL)
@out_option("Directory for the cache.")
@settings_options(CaptureConfig)
@click.option("--rank", type=click.IntRange(0), default=0, envvar="RANK", hidden=True)
@click.option("--ranks", type=click.IntRange(1), default=1, envvar="WORLD_SIZE", hidden=True)
@restart_option
@json_option
def command(teacher: Path, out: Path, rank: int, ranks: int, restart: bool, as_json: bool, **options: Any) -> None:
    """Store the outputs of TEACHER, a folder or a hub id, for `qcompress distill --cache`.

    --codec hidden stores final hidden states, which are exact and serve every temperature. hybrid stores the likeliest
    tokens and a sample of the others. It is unbiased, takes less than 100 bytes per token and serves one --temperature.
    topk stores only the likeliest tokens and is biased. Run the same command again to continue after an interruption or
    a full disk. torchrun divides the work between processes.

    \b
    qcompress capture qwen2.5-7b --codec hybrid --text chats.jsonl --samples 50000 -o cache
    torchrun --nproc-per-node 4 --no-python qcompress capture qwen2.5-7b --codec hybrid --text chats.jsonl -o cache
    qcompress cache inspect cache
    qcompress distill qwen2.5-7b --student qwen2.5-1.5b --text chats.jsonl --cache cache -o student
    """
    settings = make_settings(CaptureConfig, options)
    from compress.distill.targets.capture import capture_teacher

    row = capture_teacher(teacher, out, settings, rank=rank, ranks=ranks, restart=restart, report=report)
    emit(row, as_json=as_json)
    print_written(out, size_fact(row["bytes"]), next_command=f"qcompress cache inspect {out}", as_json=as_json)

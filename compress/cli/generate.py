"""qcompress generate: write a teacher's answers, for a student to train on."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, print_written, report, results
from compress.cli.model_path import MODEL, as_typed
from compress.cli.options import (
    Command,
    device_option,
    json_option,
    make_settings,
    out_option,
    restart_option,
    settings_options,
    shared_option,
)
from compress.core.sampling import Sampling
from compress.distill.config import GenerateConfig


@click.command("generate", cls=Command)
@click.argument("teacher", type=MODEL)
@shared_option(
    "--prompts",
    group="Essentials",
    type=click.Path(path_type=Path),
    required=True,
    help="File of prompts: .jsonl, .json, .parquet, or .txt with one prompt per line.",
)
@out_option("File for the answers, one JSON object per line.", dir_okay=False)
@settings_options(GenerateConfig)
@click.option("--rank", type=click.IntRange(0), default=0, envvar="RANK", hidden=True)
@click.option("--ranks", type=click.IntRange(1), default=1, envvar="WORLD_SIZE", hidden=True)
@device_option
@restart_option
@json_option
def command(
    teacher: Path,
    prompts: Path,
    out: Path,
    device: str,
    rank: int,
    ranks: int,
    restart: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Generate answers of TEACHER, a folder or a hub id, as text for `distill` and `capture`.

    A row of --prompts has `messages`, `prompt`, or `instruction` with an optional `input`. The output has one
    {"messages": ...} per line; only the answers count in the training loss. Every prompt has its own seed, so neither
    an interruption nor the number of processes changes an answer. Run the same command again to continue. torchrun
    divides the prompts between processes.

    \b
    qcompress generate qwen2.5-7b --prompts questions.jsonl -o answers.jsonl
    qcompress generate qwen2.5-7b --prompts alpaca.json.gz --temperature 0.7 --top-p 0.95 -o answers.jsonl
    torchrun --nproc-per-node 4 --no-python qcompress generate qwen2.5-7b --prompts questions.jsonl -o answers.jsonl
    qcompress distill qwen2.5-7b --student qwen2.5-1.5b --text answers.jsonl -o student
    """
    settings = make_settings(GenerateConfig, options)
    sampling = make_settings(Sampling, options)
    row = generate(teacher, prompts, out, settings, sampling, device=device, rank=rank, ranks=ranks, restart=restart)
    emit(row, as_json=as_json)
    if "answers" in row and not as_json:
        print_closing(row, teacher, out, sampling)


def print_closing(row: dict[str, Any], teacher: Path, out: Path, sampling: Sampling) -> None:
    """Print how many prompts were left out, one line per reason.

    Then print what was written, or that the output was already complete.
    """
    from compress.distill.generate.left_out import left_out_lines

    for line in left_out_lines(row["left_out"], sampling.max_tokens):
        results.print(line, markup=False)
    command_line = f"qcompress distill {as_typed(teacher)} --student STUDENT --text {out} -o trained"
    if "skipped" in row:
        results.print(f"Nothing to do: {out} is complete, and settings and prompts are unchanged.", markup=False)
    else:
        print_written(out, f"{row['answers']:,} answers", next_command=command_line)


def generate(
    teacher: Path,
    prompts: Path,
    out: Path,
    settings: GenerateConfig,
    sampling: Sampling,
    *,
    device: str,
    rank: int,
    ranks: int,
    restart: bool,
) -> Any:
    """Run the job; returns its row. The runtime is closed when the job ends."""
    from compress.checkpoint.load import open_causal_lm
    from compress.distill.generate.choose import choose_runtime
    from compress.distill.generate.job import generate_answers

    checkpoint, gpu = open_causal_lm(teacher, readable=False), rank if ranks > 1 else None
    with ExitStack() as stack:
        place: dict[str, Any] = {"device": device, "gpu": gpu, "stack": stack, "report": report}
        return generate_answers(
            checkpoint,
            prompts,
            out,
            sampling,
            choose=lambda length: choose_runtime(
                settings.runtime, checkpoint, length, out=out, batch_size=settings.batch_size, **place
            ),
            limit=settings.limit,
            keep_truncated=settings.keep_truncated,
            rank=rank,
            ranks=ranks,
            restart=restart,
            report=report,
        )

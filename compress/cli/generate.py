"""qcompress generate: a teacher's own answers, for a student to learn from."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, json_option, report
from compress.cli.options import device_option
from compress.core.sampling import Sampling


@click.command("generate")
@click.argument("teacher", type=click.Path(path_type=Path))
@click.option("--prompts", type=click.Path(path_type=Path), required=True, help=".jsonl, .json, .parquet or .txt.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File for the answers.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="In an answer, at most.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0: the likeliest token.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="The first prompts of the file only.")
@click.option("--keep-truncated", is_flag=True, help="Keep answers that --max-tokens cut off; else they are left out.")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "vllm", "transformers"]),
    default="auto",
    show_default=True,
    help="Runtime that generates. auto: the one that began --out, else vLLM if it works, else transformers.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Prompts per batch.  [default: transformers 8, vllm 128]")
@device_option
@click.option("--rank", type=click.IntRange(0), default=0, envvar="RANK", help="This process, of --ranks.")
@click.option("--ranks", type=click.IntRange(1), default=1, envvar="WORLD_SIZE", help="Processes that share the work.")
@json_option
def command(
    teacher: Path,
    prompts: Path,
    out: Path,
    runtime: str,
    batch_size: int | None,
    device: str,
    limit: int | None,
    keep_truncated: bool,
    rank: int,
    ranks: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Let TEACHER (a directory) answer prompts through its chat template, as text to distill from.

    A row of --prompts has `messages`, `prompt`, or `instruction` and perhaps `input`; a line of a .txt is a prompt.
    What comes out is {"messages": …} a line, which `distill --data` and `capture --data` read; only the answers count
    in the loss. Interrupted, the same command goes on. Every prompt has its own seed, so neither that nor the number of
    processes changes an answer.

    \b
    qcompress generate qwen2.5-7b --prompts questions.jsonl --out answers.jsonl
    qcompress generate qwen2.5-7b --prompts alpaca.json.gz --temperature 0.7 --top-p 0.95 --out answers.jsonl
    torchrun --nproc-per-node 4 --no-python qcompress generate qwen2.5-7b --prompts questions.jsonl --out answers.jsonl
    qcompress distill qwen2.5-7b --student qwen2.5-1.5b --data answers.jsonl --out student
    """
    sampling = Sampling(**options)
    from compress.checkpoint.load import open_causal_lm
    from compress.distill.generate.choose import choose_runtime
    from compress.distill.generate.job import generate_answers

    checkpoint, gpu = open_causal_lm(teacher), rank if ranks > 1 else None
    with ExitStack() as stack:
        settings: dict[str, Any] = {"out": out, "batch_size": batch_size, "device": device, "gpu": gpu}
        settings |= {"stack": stack, "report": report}
        row = generate_answers(
            checkpoint,
            prompts,
            out,
            sampling,
            choose=lambda length: choose_runtime(runtime, checkpoint, length, **settings),
            limit=limit,
            keep_truncated=keep_truncated,
            rank=rank,
            ranks=ranks,
            report=report,
        )
    emit(row, as_json=as_json)

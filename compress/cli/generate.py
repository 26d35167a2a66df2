"""qcompress generate: a teacher's own answers, for a student to learn from."""

from contextlib import ExitStack, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.console import emit, json_option, report
from compress.cli.eval import vllm_errors
from compress.core.sampling import Engine, Sampling

if TYPE_CHECKING:
    from compress.checkpoint.read import Checkpoint


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
    "--engine",
    type=click.Choice(["auto", "vllm", "transformers"]),
    default="auto",
    show_default=True,
    help="auto: what has begun the file; else vLLM where it is installed and starts.",
)
@click.option("--batch", type=click.IntRange(1), help="Prompts asked at a time.  [default: transformers 8, vllm 128]")
@click.option("--rank", type=click.IntRange(0), default=0, envvar="RANK", help="This process, of --ranks.")
@click.option("--ranks", type=click.IntRange(1), default=1, envvar="WORLD_SIZE", help="Processes that share the work.")
@json_option
def command(
    teacher: Path,
    prompts: Path,
    out: Path,
    engine: str,
    batch: int | None,
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
    from compress.distill.generate.job import generate_answers

    checkpoint, gpu = open_causal_lm(teacher), rank if ranks > 1 else None
    with vllm_errors(), ExitStack() as opened:
        row = generate_answers(
            checkpoint,
            prompts,
            out,
            sampling,
            choose=lambda length: choose_engine(engine, batch, (checkpoint, length), out, gpu, opened),
            limit=limit,
            keep_truncated=keep_truncated,
            rank=rank,
            ranks=ranks,
            report=report,
        )
    emit(row, as_json=as_json)


def choose_engine(
    wanted: str, batch: int | None, asked: tuple["Checkpoint", int], out: Path, gpu: int | None, opened: ExitStack
) -> Engine:
    """An engine for `asked`, teacher and length.

    auto is the one that has begun `out`, else vLLM where it starts (in `opened`), else transformers.
    """
    from compress.distill.generate.answers import find_facts
    from compress.distill.generate.job import transformers_sampler
    from compress.runtimes.vllm_process import vllm_sampler

    transformers = Engine("transformers", lambda path, length: transformers_sampler(path, length, gpu or 0), batch or 8)
    vllm = Engine("vllm", lambda path, length: vllm_sampler(path, length, gpu), batch or 128)
    if wanted == "auto":
        begun = find_facts(out) or {}
        wanted = begun.get("engine", wanted)
    if wanted == "auto":
        return (find_spec("vllm") and start_vllm(vllm, asked, opened)) or transformers
    return vllm if wanted == "vllm" else transformers


def start_vllm(vllm: Engine, asked: tuple["Checkpoint", int], opened: ExitStack) -> Engine | None:
    """vLLM, started and asked for one token; None, and the reason on stderr, where that fails."""
    from compress.runtimes.vllm_offline import VllmFailedError

    sampler = opened.enter_context(vllm.open(*asked))
    try:
        sampler([[0]], [0], Sampling(1))
    except VllmFailedError as error:
        report({"engine": "transformers", "because": f"vLLM ended: {error}"})
        return None
    return Engine(vllm.name, lambda path, length: nullcontext(sampler), vllm.batch)

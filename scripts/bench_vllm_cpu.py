"""Measure decoding speed and time to first token in vLLM: python scripts/bench_vllm_cpu.py FP16_CHECKPOINT QUANTIZED...

Each checkpoint runs in its own process with the same settings: one request at a time, 128 prompt tokens and 64 greedy
new tokens. Figures are medians over the repeats, with the best one in brackets. Ratios compare a checkpoint with the
first one; above 1 is faster. Other work on the machine slows down short parallel steps a lot. So the load average
before each run is printed on stderr and in the JSON.
"""

import json
import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import click

from compress.checkpoint.read import Checkpoint
from compress.runtimes.vllm_offline import VllmFailedError, open_vllm, run_in_new_process

PROMPT, DECODED = 128, 64

Run = dict[str, list[float]]
Row = dict[str, Any]


def measure(request: dict[str, Any]) -> Run:
    """Measure seconds to the first token and tokens per second after it, once per repeat. Runs in vLLM's process."""
    from vllm import SamplingParams, TokensPrompt

    llm = open_vllm(request["checkpoint"], dtype=request["dtype"], max_model_len=2 * (PROMPT + DECODED))

    def seconds(repeat: int, tokens: int) -> float:
        start = time.perf_counter()
        prompt = TokensPrompt(prompt_token_ids=[100 + (repeat * PROMPT + i) % 1000 for i in range(PROMPT)])
        llm.generate([prompt], SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True), use_tqdm=False)
        return time.perf_counter() - start

    seconds(0, DECODED)
    first, speed = [], []
    for repeat in range(request["repeats"]):
        first.append(seconds(repeat, 1))
        speed.append(DECODED / (seconds(repeat, 1 + DECODED) - first[-1]))
    return {"first_token_s": first, "tokens_per_s": speed}


def run(path: str, dtype: str, repeats: int) -> Run:
    load = os.getloadavg()[0]
    click.echo(f"{path}: load average {load:.1f}", err=True)
    try:
        measured = run_in_new_process(__file__, {"checkpoint": path, "dtype": dtype, "repeats": repeats})
    except VllmFailedError as error:
        raise click.ClickException(f"{path}: vLLM failed on this checkpoint: {error}") from error
    return measured | {"load_average": [load]}


def summarize(path: str, runs: list[Run]) -> Row:
    """One row per checkpoint: median and best value over all repeats of all rounds."""
    first, speed, load = (
        [value for run in runs for value in run[key]] for key in ("first_token_s", "tokens_per_s", "load_average")
    )
    return {
        "checkpoint": path,
        "megabytes": Checkpoint(path).bytes / 1e6,
        "tokens_per_s": median(speed),
        "best_tokens_per_s": max(speed),
        "first_token_ms": 1e3 * median(first),
        "best_first_token_ms": 1e3 * min(first),
        "repeats": len(speed),
        "load_average": max(load),
    }


def with_ratios(rows: list[Row]) -> list[Row]:
    """Add to each row its speed relative to the first row: ratios of medians, and ratios of best values."""
    base = rows[0]
    return [
        row
        | {f"{kind}_ratio": row[kind] / base[kind] for kind in ("tokens_per_s", "best_tokens_per_s")}
        | {f"{kind}_ratio": base[kind] / row[kind] for kind in ("first_token_ms", "best_first_token_ms")}
        for row in rows
    ]


def table(rows: list[Row]) -> str:
    """The rows as a text table. Each cell has the median, and the best value in brackets."""
    lines = [f"{'checkpoint':28} {'MB':>5}  {'tokens/s':>13} {'ratio':>13}  {'first token ms':>15} {'ratio':>13}"]
    for row in rows:
        speed = f"{row['tokens_per_s']:.1f} ({row['best_tokens_per_s']:.1f})"
        speed_ratio = f"{row['tokens_per_s_ratio']:.2f} ({row['best_tokens_per_s_ratio']:.2f})"
        first = f"{row['first_token_ms']:.0f} ({row['best_first_token_ms']:.0f})"
        first_ratio = f"{row['first_token_ms_ratio']:.2f} ({row['best_first_token_ms_ratio']:.2f})"
        name = Path(row["checkpoint"]).name[:28]
        lines.append(f"{name:28} {row['megabytes']:5.0f}  {speed:>13} {speed_ratio:>13}  {first:>15} {first_ratio:>13}")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False))
@click.option("--dtype", default="float16", show_default=True, help="Dtype that vLLM computes in.")
@click.option("--repeats", default=5, show_default=True, help="Repeats per checkpoint and round.")
@click.option("--rounds", default=1, show_default=True, help="Number of times that every checkpoint is measured.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON on stdout.")
def main(checkpoints: tuple[str, ...], dtype: str, repeats: int, rounds: int, as_json: bool) -> None:
    runs: dict[str, list[Run]] = {path: [] for path in checkpoints}
    for _ in range(rounds):
        for path in checkpoints:
            runs[path].append(run(path, dtype, repeats))
    rows = with_ratios([summarize(path, results) for path, results in runs.items()])
    click.echo(json.dumps(rows, indent=2) if as_json else table(rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        request, answer = map(Path, sys.argv[2:])
        answer.write_text(json.dumps(measure(json.loads(request.read_text()))))
    else:
        main()

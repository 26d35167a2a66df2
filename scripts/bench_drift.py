"""Measure the speed of the drift computation: python scripts/bench_drift.py REFERENCE CANDIDATE TEXT

It is compared with two bare forward passes, one per model. They have the whole models in memory in float32, compute the
logits of every window and discard them; loading is not measured. The drift computation is `compare_rows` from files to
row, loading included. Both alternate --repeats times on the same windows. Figures are medians.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from calibration.windows import Windows
from compress.checkpoint.load import load_model
from compress.cli.console import emit, report
from compress.cli.options import json_option
from compress.evaluate.drift.compare import compare_rows
from compress.evaluate.drift.hidden_states import MICRO_BATCH_TOKENS
from compress.evaluate.drift.windows import evaluation_windows

Row = dict[str, Any]
SHARE = 0.8  # target: tokens per second, relative to the bare passes


@torch.no_grad()
def bare_seconds(models: list[Any], windows: Windows, size: int) -> float:
    """Seconds in which both models compute the logits of all windows, `size` windows at a time."""
    started = time.perf_counter()
    for model in models:
        for part in windows.ids.split(size):
            model(part, use_cache=False)
    return time.perf_counter() - started


def drift_seconds(reference: Path, candidate: Path, windows: Windows, size: int) -> float:
    started = time.perf_counter()
    compare_rows(reference, [candidate], windows, micro_batch=size)
    return time.perf_counter() - started


def take_turns(measures: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """The seconds of each measurement, by name. The measurements alternate `repeats` times."""
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            seconds[name].append(measure())
            report({"name": name, "seconds": seconds[name][-1], "load_average": os.getloadavg()[0]})
    return seconds


@click.command(help=__doc__)
@click.argument("reference", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("candidate", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("text")
@click.option("--tokens", type=click.IntRange(1), default=100_000, show_default=True, help="Smallest number of tokens.")
@click.option("--seq-len", type=click.IntRange(8), default=512, show_default=True, help="Tokens per window.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Number of measurements.")
@click.option(
    "--threads", type=click.IntRange(1), default=None, help="Number of torch's threads.  [default: torch's choice]"
)
@json_option
def main(
    reference: Path,
    candidate: Path,
    text: str,
    tokens: int,
    seq_len: int,
    repeats: int,
    threads: int | None,
    as_json: bool,
) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    windows = evaluation_windows(reference, [candidate], text, n_samples=-(-tokens // seq_len), seq_len=seq_len)
    size = max(1, MICRO_BATCH_TOKENS // seq_len)
    models = [load_model(path) for path in (reference, candidate)]
    bare_seconds(models, Windows(windows.ids[:size], windows.mask[:size], {}), size)  # warms up, not measured
    seconds = take_turns(
        {
            "two bare passes": lambda: bare_seconds(models, windows, size),
            "drift": lambda: drift_seconds(reference, candidate, windows, size),
        },
        repeats,
    )
    count = windows.ids.numel()
    rows = [
        {
            "name": name,
            "tokens": count,
            "seconds": statistics.median(values),
            "fastest": min(values),
            "slowest": max(values),
            "tokens_per_second": count / statistics.median(values),
        }
        for name, values in seconds.items()
    ]
    share = rows[1]["tokens_per_second"] / rows[0]["tokens_per_second"]
    target = {"name": "drift / two bare passes", "target_at_least": SHARE, "measured": share, "met": share >= SHARE}
    if as_json:
        load = {"load_average": os.getloadavg()[0], "threads": torch.get_num_threads()}
        emit({"rows": rows, "targets": [target], **load}, as_json=True)
        return
    emit(rows, as_json=False)
    emit(target, as_json=False)


if __name__ == "__main__":
    main()

"""Compare every method with plain rounding in the same format: python scripts/bench_methods.py MODEL TEXT EVAL_TEXT

MODEL is quantized with each method on TEXT. All checkpoints are compared with MODEL on windows of EVAL_TEXT. The output
has seconds, bytes, KL, and the percentage by which the KL is below that of rtn in the same format.

    python scripts/bench_methods.py build/smollm2 wikitext2.valid.txt wikitext2.test.txt --group-size 64
"""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import click
from script_options import out_option

from compress.cli.console import emit, report
from compress.cli.options import json_option
from compress.core.config import METHODS, QuantizeConfig
from compress.evaluate.drift.compare import compare_rows
from compress.evaluate.drift.windows import evaluation_windows
from compress.quantize.job import RunOptions, quantize_checkpoint

VARIANTS = (("rtn", "gptq"), ("gptq", "gptq"), ("rtn", "awq"), ("awq", "awq"), ("awq+gptq", "awq"))


def timed(model: Path, out: Path, config: QuantizeConfig) -> float:
    """The seconds of one quantization, from the call to the published checkpoint."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    quantize_checkpoint(model, out, config, RunOptions(report=report))
    return time.perf_counter() - started


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("text")
@click.argument("eval_text")
@out_option("build/bench", "Folder for the checkpoints.")
@click.option("--group-size", type=int, default=64, show_default=True, help="Weights per scale.")
@click.option("--samples", type=int, default=64, show_default=True, help="Number of calibration windows.")
@click.option("--seq-len", type=int, default=512, show_default=True, help="Tokens per window, of both texts.")
@click.option(
    "--method", "methods", multiple=True, type=click.Choice(METHODS), default=METHODS, help="Method to run. Repeatable."
)
@click.option("--eval-samples", type=int, default=12, show_default=True, help="Number of windows of EVAL_TEXT.")
@json_option
def main(
    model: Path,
    text: str,
    eval_text: str,
    out: Path,
    methods: tuple[str, ...],
    eval_samples: int,
    as_json: bool,
    **sizes: int,
) -> None:
    """Quantize MODEL with every method on TEXT, and compare the checkpoints on EVAL_TEXT."""
    seconds = {}
    for method, format_name in [variant for variant in VARIANTS if variant[0] in methods]:
        config = QuantizeConfig(method=method, format=format_name, text=(text,), **sizes)
        path = out / f"{method}-in-{format_name}"
        seconds[path] = timed(model, path, config)
    windows = evaluation_windows(model, list(seconds), eval_text, n_samples=eval_samples, seq_len=sizes["seq_len"])
    rows = compare_rows(model, list(seconds), windows, report=report)
    rtn = {"gptq": float("nan"), "awq": float("nan")} | {
        row["format"]: row["kl"] for row in rows[1:] if row["method"] == "rtn"
    }
    emit([shown(row, seconds, rtn, out) for row in rows[1:]], as_json=as_json)


def shown(row: dict[str, Any], seconds: dict[Path, float], rtn: dict[str, float], out: Path) -> dict[str, Any]:
    kept = ("name", "bytes", "bits_per_weight", "kl", "kl_se", "kl_p99", "perplexity", "perplexity_ratio", "top1")
    below = f"{100 * (1 - row['kl'] / rtn[row['format']]):.0f} %"
    return {key: row[key] for key in kept} | {"below_rtn": below, "seconds": round(seconds[out / row["name"]], 1)}


if __name__ == "__main__":
    sys.exit(main())

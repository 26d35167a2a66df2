"""Compare qcompress with other quantizers on one machine: python scripts/bench_quantize.py MODEL TEXT EVAL_TEXT

Every quantizer runs alone in its own process. Other quantizers run in the environments that scripts/install_peers.sh
creates. All read the same calibration text: the first --samples windows of --seq-len tokens in the file TEXT. Then
every checkpoint is compared with MODEL on the same windows of EVAL_TEXT.

Each quantizer measures its own `seconds`. For qcompress, they include loading, saving and measuring the start token.
For the other quantizers, they do not. `command_seconds` is the time of the whole command.
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # else idle threads of this process would slow down the measured ones

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from roofline import matmul_rate, pass_flops
from script_options import out_option, peers_option

from calibration.windows import build_windows
from compress.checkpoint.formats import format_of, quantized_weight
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import Checkpoint
from compress.cli.console import emit, report
from compress.cli.options import json_option
from compress.evaluate.drift.compare import compare_rows
from compress.evaluate.drift.windows import evaluation_windows
from compress.model.blocks import make_config
from compress.model.precision import fastest_matmul_dtype
from compress.model.shapes import linear_shapes

Row = dict[str, Any]
HERE = Path(__file__).resolve().parent
ROOFLINE_LIMIT = 1.5
FIGURES = ("bytes", "kl", "kl_se", "kl_p99", "perplexity", "perplexity_ratio", "perplexity_ratio_se", "top1")


@dataclass(frozen=True)
class QuantizerJob:
    """The model, text and sizes for one quantizer. `windows` is the JSON file with the token ids of the text."""

    model: Path
    out: Path
    text: str
    windows: Path
    group_size: int
    samples: int
    seq_len: int
    peers: Path


@dataclass(frozen=True)
class Variant:
    """A quantizer and its settings: the options of `qcompress quantize`, or the name of a peer."""

    name: str
    options: tuple[str, ...] = ()
    peer: str | None = None
    environment: tuple[tuple[str, str], ...] = ()


VARIANTS = (
    Variant("gptq", ("--method", "gptq", "--format", "gptq")),
    Variant("gptq uncorrected", ("--method", "gptq", "--format", "gptq", "--error-correction", "0")),
    Variant("gptq, 16 windows", ("--method", "gptq", "--format", "gptq", "--samples", "16")),
    Variant("gptq, 8 windows", ("--method", "gptq", "--format", "gptq", "--samples", "8")),
    Variant("awq", ("--method", "awq", "--format", "awq")),
    Variant("awq+gptq", ("--method", "awq+gptq", "--format", "awq")),
    Variant("awq+gptq, 16 windows", ("--method", "awq+gptq", "--format", "awq", "--samples", "16")),
    Variant("awq+gptq tune", ("--method", "awq+gptq", "--format", "awq", "--tune")),
    Variant("llm-compressor", peer="llmcompressor"),
    Variant("gptqmodel", peer="gptqmodel", environment=(("GPTQMODEL_CPU_WORKERS", "2"),)),
)


@dataclass(frozen=True)
class Target:
    """A limit on the ratio of a `figure`: `variant` over `against`. "best peer" is the peer with the lowest figure."""

    variant: str
    figure: str
    against: str
    limit: float


TARGETS = (
    Target("gptq", "seconds", "llm-compressor", 1 / 4),
    Target("gptq", "seconds", "gptqmodel", 1 / 8),
    Target("gptq", "kl", "best peer", 0.55),
    Target("awq+gptq", "seconds", "llm-compressor", 1 / 3),
    Target("awq+gptq", "kl", "best peer", 0.40),
    Target("awq+gptq tune", "kl", "best peer", 0.30),
)


def command(variant: Variant, job: QuantizerJob) -> list[str]:
    """The command line of one quantizer."""
    if variant.peer is not None:
        python, script = job.peers / variant.peer / "bin/python", HERE / "peers" / f"run_{variant.peer}.py"
        return [str(python), "-W", "ignore", *map(str, (script, job.model, job.out, job.windows, job.group_size))]
    sizes = {"--group-size": job.group_size, "--samples": job.samples, "--seq-len": job.seq_len}
    options = [part for name, value in sizes.items() for part in (name, str(value))]
    start = [sys.executable, "-c", "from compress.cli import cli; cli()", "quantize", str(job.model)]
    return [*start, *options, *variant.options, "--text", job.text, "--out", str(job.out), "--json"]


def run(variant: Variant, job: QuantizerJob) -> Row:
    """Run one quantizer in its own process. The row has its seconds and peak memory, or the reason for its failure."""
    row: Row = {"name": variant.name}
    if variant.peer and not (job.peers / variant.peer / "bin/python").exists():
        return row | {"failed": "not installed: run scripts/install_peers.sh"}
    shutil.rmtree(job.out, ignore_errors=True)
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")] if variant.peer is None else [str(HERE / "peers")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | dict(variant.environment)
    del environment["OMP_WAIT_POLICY"]  # each quantizer keeps its default
    answer, log = job.out.with_suffix(".json"), job.out.with_suffix(".log")
    started = time.perf_counter()
    with answer.open("w") as stdout, log.open("w") as stderr:
        process = subprocess.Popen(command(variant, job), stdout=stdout, stderr=stderr, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    row |= {"command_seconds": time.perf_counter() - started, "peak_gib": usage.ru_maxrss / 2**20}
    if status:
        return row | {"failed": f"{last_line(log)} ; see {log}"}
    text = answer.read_text()
    result = json.loads(text) if variant.peer is None else json.loads(text.strip().splitlines()[-1])
    start = (Checkpoint(job.out).record.get("calibration") or {}).get("start") or {}
    return row | {"seconds": result["seconds"], "start_token": start.get("token")}


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"


def readable(row: Row, path: Path) -> Row:
    """The row of a checkpoint. If qcompress cannot read the checkpoint, the row has the reason as `failed`."""
    if "failed" in row:
        return row
    try:
        checkpoint = open_causal_lm(path)
        if format_of(checkpoint) is None:
            return row | {"failed": f"{path}: the checkpoint is not quantized"}
        quantized_weight(checkpoint, next(iter(linear_shapes(checkpoint.config))))
    except (ValueError, KeyError, click.ClickException) as error:
        return row | {"failed": f"{path}: qcompress cannot read the checkpoint: {error}"}
    return row


def compare_targets(rows: list[Row]) -> list[Row]:
    """One row per target: the limit, the measured ratio, and whether it is met."""
    peers = {variant.name for variant in VARIANTS if variant.peer}
    results = []
    for target in TARGETS:
        values = {row["name"]: row[target.figure] for row in rows if target.figure in row}
        against = [values[name] for name in values if name == target.against or target.against == "best peer"]
        if target.against == "best peer":
            against = [values[name] for name in values if name in peers]
        ratio = values[target.variant] / min(against) if target.variant in values and against else None
        results.append(verdict(f"{target.variant}: {target.figure} / {target.against}", target.limit, ratio))
    return results


def verdict(name: str, limit: float, ratio: float | None) -> Row:
    """The row of one target: the limit, the measured ratio, and whether it is met."""
    met = "not measured" if ratio is None else ratio <= limit
    return {"name": name, "target_at_most": limit, "measured": ratio, "met": met}


def roofline_rows(model: Path, rows: list[Row], tokens: int, seq_len: int) -> list[Row]:
    """Rows that compare the seconds of qcompress's gptq with their lower bound.

    The bound is the operations of one pass, divided by this machine's rate in the fastest dtype.
    """
    config = open_causal_lm(model).config
    shapes, settings = linear_shapes(config), make_config(config)
    heads = settings.num_attention_heads
    width = heads * (getattr(settings, "head_dim", None) or settings.hidden_size // heads)
    firsts = ("q_proj", "o_proj", "gate_proj", "down_proj")  # one linear of every stage
    inputs = [inn for name, (_, inn) in shapes.items() if name.endswith(firsts)]
    flops = pass_flops(
        shapes.values(), inputs, tokens=tokens, seq_len=seq_len, attention=settings.num_hidden_layers * width
    )
    dtype = fastest_matmul_dtype()
    rate = matmul_rate(shapes.values(), dtype)
    bound = f"{flops / 1e12:.2f} Tflop at {rate / 1e9:.1f} Gflop/s in {str(dtype).removeprefix('torch.')}"
    ratios = {row["name"]: row["seconds"] * rate / flops for row in rows if "seconds" in row}
    names = ("gptq", "gptq uncorrected")
    return [verdict(f"{name}: seconds / ({bound})", ROOFLINE_LIMIT, ratios.get(name)) for name in names]


def score(model: Path, rows: list[Row], place: Callable[[str], Path], text: str, samples: int, seq_len: int) -> None:
    """Add the drift of each checkpoint from the model to its row. Rows with `failed` stay as they are."""
    whole = [row for row in rows if "failed" not in row]
    paths = [place(row["name"]) for row in whole]
    if not paths:
        return
    windows = evaluation_windows(model, paths, text, n_samples=samples, seq_len=seq_len)
    for row, scored in zip(whole, compare_rows(model, paths, windows, report=report)[1:], strict=True):
        row |= {key: scored[key] for key in FIGURES}


@click.command(help=__doc__)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("text")
@click.argument("eval_text")
@out_option("build/bench-quantize", "Folder for checkpoints and logs.")
@peers_option
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=click.Choice([variant.name for variant in VARIANTS]),
    help="Quantizer to run. Repeatable.  [default: all]",
)
@click.option("--group-size", type=int, default=64, show_default=True, help="Weights per scale.")
@click.option("--samples", type=int, default=64, show_default=True, help="Number of calibration windows.")
@click.option("--seq-len", type=int, default=512, show_default=True, help="Tokens per window, of both texts.")
@click.option("--eval-samples", type=int, default=12, show_default=True, help="Number of windows of EVAL_TEXT.")
@json_option
def main(
    model: Path,
    text: str,
    eval_text: str,
    out: Path,
    peers: Path,
    variants: tuple[str, ...],
    eval_samples: int,
    as_json: bool,
    **sizes: int,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    samples, seq_len = sizes["samples"], sizes["seq_len"]
    plain = build_windows([text], open_causal_lm(model).tokenizer, n_samples=samples, seq_len=seq_len)
    (out / "windows.json").write_text(json.dumps(plain.ids.tolist()))
    report({"text of the peers": f"{samples} × {seq_len} tokens of {text}", "digest": plain.manifest["digest"]})
    report({"text of qcompress": "the same tokens; every window begins with the start token if that lowers the loss"})
    rows = []
    for variant in VARIANTS:
        if variants and variant.name not in variants:
            continue
        place = out / variant.name
        job = QuantizerJob(model, place, text, out / "windows.json", **sizes, peers=peers.absolute())
        rows.append(readable(run(variant, job), place))
        report(rows[-1])
    score(model, rows, lambda name: out / name, eval_text, eval_samples, seq_len)
    targets = [*compare_targets(rows), *roofline_rows(model, rows, samples * seq_len, seq_len)]
    if as_json:
        emit({"rows": rows, "targets": targets, "load_average": os.getloadavg()[0]}, as_json=True)
        return
    emit(rows, as_json=False)
    emit(targets, as_json=False)


if __name__ == "__main__":
    main()

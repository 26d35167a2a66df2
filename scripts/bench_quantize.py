"""qcompress against other quantizers, one run on one machine: python scripts/bench_quantize.py MODEL CALIBRATION TEXT

Every quantizer runs alone, in its own process and interpreter (scripts/install_peers.sh makes those of the others), on
the same text: the first --samples · --seq-len tokens of the file CALIBRATION. Then every checkpoint is scored
against MODEL on the same windows of TEXT.

`seconds` is measured by the quantizer: the peers' without loading and saving, ours with both and with measuring
the start token; `command_seconds` is the whole command for all.
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # of this process: threads that spin while it waits would slow all others

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

from calibration.windows import build_windows
from compress.checkpoint.formats import format_of, quantized_weight
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import Checkpoint
from compress.cli.console import emit, report
from compress.cli.options import json_option
from compress.evaluate.drift.compare import compare_rows
from compress.evaluate.drift.windows import evaluation_windows
from compress.model.blocks import linear_shapes, make_config
from compress.model.precision import fastest_matmul_dtype

Row = dict[str, Any]
HERE = Path(__file__).resolve().parent
ROOFLINE_LIMIT = 1.5
FIGURES = ("bytes", "kl", "kl_se", "kl_p99", "perplexity", "perplexity_ratio", "perplexity_ratio_se", "top1")


@dataclass(frozen=True)
class QuantizerJob:
    """The model, text and sizes for one quantizer."""

    model: Path
    out: Path
    calibration: str
    windows: Path
    group_size: int
    samples: int
    seq_len: int
    peers: Path


@dataclass(frozen=True)
class Variant:
    """A row: a peer's environment and runner, or the options of `qcompress quantize`."""

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
    """`figure` of `variant` over that of `against` ("best peer": the lowest) shall be `limit` at most."""

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
    return [*start, *options, *variant.options, "--text", job.calibration, "--out", str(job.out), "--json"]


def run(variant: Variant, job: QuantizerJob) -> Row:
    """One quantizer in its own process: seconds and peak memory, or the reason of its failure."""
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
    """The row, failed when our reader does not understand the checkpoint."""
    if "failed" in row:
        return row
    try:
        checkpoint = open_causal_lm(path)
        if format_of(checkpoint) is None:
            return row | {"failed": f"{path} is not quantized"}
        quantized_weight(checkpoint, next(iter(linear_shapes(checkpoint.config))))
    except (ValueError, KeyError, click.ClickException) as error:
        return row | {"failed": f"our reader refuses it: {error}"}
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
    """The seconds of our gptq over those of one pass's operations, at this machine's rate in the type that it takes."""
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


def score(model: Path, rows: list[Row], place: Callable[[str], Path], text: str, windows: int, seq_len: int) -> None:
    """Add to every row that did not fail how far its checkpoint is from the model."""
    whole = [row for row in rows if "failed" not in row]
    paths = [place(row["name"]) for row in whole]
    if not paths:
        return
    read = evaluation_windows(model, paths, text, n_samples=windows, seq_len=seq_len)
    for row, scored in zip(whole, compare_rows(model, paths, read, report=report)[1:], strict=True):
        row |= {key: scored[key] for key in FIGURES}


@click.command(help=__doc__)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("calibration")
@click.argument("text")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/bench-quantize"), show_default=True)
@click.option("--peers", type=click.Path(path_type=Path), default=Path("build/peers"), show_default=True)
@click.option("--variant", "variants", multiple=True, type=click.Choice([variant.name for variant in VARIANTS]))
@click.option("--group-size", type=int, default=64, show_default=True)
@click.option("--samples", type=int, default=64, show_default=True)
@click.option("--seq-len", type=int, default=512, show_default=True)
@click.option("--windows", type=int, default=12, show_default=True, help="Windows of TEXT, --seq-len tokens each.")
@json_option
def main(
    model: Path,
    calibration: str,
    text: str,
    out: Path,
    peers: Path,
    variants: tuple[str, ...],
    windows: int,
    as_json: bool,
    **sizes: int,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    samples, seq_len = sizes["samples"], sizes["seq_len"]
    plain = build_windows([calibration], open_causal_lm(model).tokenizer, n_samples=samples, seq_len=seq_len)
    (out / "windows.json").write_text(json.dumps(plain.ids.tolist()))
    report({"the others see": f"{samples} × {seq_len} tokens of {calibration}", "digest": plain.manifest["digest"]})
    report({"ours sees": "the same text from its beginning, each window after the start token, if the model wants it"})
    rows = []
    for variant in VARIANTS:
        if variants and variant.name not in variants:
            continue
        place = out / variant.name
        job = QuantizerJob(model, place, calibration, out / "windows.json", **sizes, peers=peers.absolute())
        rows.append(readable(run(variant, job), place))
        report(rows[-1])
    score(model, rows, lambda name: out / name, text, windows, seq_len)
    targets = [*compare_targets(rows), *roofline_rows(model, rows, samples * seq_len, seq_len)]
    if as_json:
        emit({"rows": rows, "targets": targets, "load_average": os.getloadavg()[0]}, as_json=True)
        return
    emit(rows, as_json=False)
    emit(targets, as_json=False)


if __name__ == "__main__":
    main()

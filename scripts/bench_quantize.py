"""Compare qcompress with other quantizers on one machine: python scripts/bench_quantize.py MODEL TEXT EVAL_TEXT

Every quantizer runs alone, as a command `qcompress quantize`; the others as its backends, which `qcompress backends
install NAME` installs. All read the same windows of TEXT. Then every checkpoint is checked, and compared with MODEL on
the same windows of EVAL_TEXT and of --other-text.

`seconds` of qcompress include loading, saving and measuring the start token. Those of backends are the quantization
alone. `command_seconds` is the time of the whole command. `peak_gib` of a backend is that of its own process.

    python scripts/bench_quantize.py build/reference VALID TEST --other-text heldout --vllm build/vllm/bin/python
    python scripts/bench_quantize.py build/reference VALID TEST --variant auto-round --variant awq+gptq
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
from script_options import out_option

from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import Checkpoint
from compress.cli.console import emit, report
from compress.cli.options import json_option
from compress.core.errors import QCompressError
from compress.evaluate.drift.compare import compare_rows
from compress.evaluate.drift.windows import evaluation_windows
from compress.model.blocks import make_config
from compress.model.precision import fastest_matmul_dtype
from compress.model.shapes import linear_shapes

Row = dict[str, Any]
HERE = Path(__file__).resolve().parent
ROOFLINE_LIMIT = 1.5
FIGURES = ("kl", "kl_se", "kl_p99", "perplexity", "perplexity_ratio", "perplexity_ratio_se", "top1")
OTHER_FIGURES = ("kl", "kl_se")


@dataclass(frozen=True)
class QuantizerJob:
    """The model, calibration text and sizes for one quantizer."""

    model: Path
    out: Path
    text: str
    group_size: int
    samples: int
    seq_len: int


@dataclass(frozen=True)
class Variant:
    """A quantizer and its settings: options of `qcompress quantize`."""

    name: str
    options: tuple[str, ...]

    @property
    def backend(self) -> str | None:
        """The backend, or None for qcompress's own methods."""
        return self.options[self.options.index("--backend") + 1] if "--backend" in self.options else None

    @property
    def fixes_groups(self) -> bool:
        return self.backend == "llama.cpp"


VARIANTS = (
    Variant("gptq", ("--method", "gptq", "--format", "gptq")),
    Variant("gptq uncorrected", ("--method", "gptq", "--format", "gptq", "--error-correction", "0")),
    Variant("gptq, 16 windows", ("--method", "gptq", "--format", "gptq", "--samples", "16")),
    Variant("gptq, 8 windows", ("--method", "gptq", "--format", "gptq", "--samples", "8")),
    Variant("awq", ("--method", "awq", "--format", "awq")),
    Variant("awq+gptq", ("--method", "awq+gptq", "--format", "awq")),
    Variant("awq+gptq, 16 windows", ("--method", "awq+gptq", "--format", "awq", "--samples", "16")),
    Variant("awq+gptq tune", ("--method", "awq+gptq", "--format", "awq", "--tune")),
    Variant("llm-compressor", ("--backend", "llm-compressor", "--method", "gptq")),
    Variant("gptqmodel", ("--backend", "gptqmodel", "--method", "gptq")),
    Variant("optimum", ("--backend", "optimum")),
    Variant("auto-gptq", ("--backend", "auto-gptq")),
    Variant("autoawq", ("--backend", "autoawq")),
    Variant("auto-round light", ("--backend", "auto-round", "--method", "auto-round-light")),
    Variant("auto-round", ("--backend", "auto-round", "--method", "auto-round")),
    Variant("llama.cpp Q4_0", ("--backend", "llama.cpp", "--method", "Q4_0")),
    Variant("llama.cpp IQ4_XS", ("--backend", "llama.cpp", "--method", "IQ4_XS")),
    Variant("llama.cpp Q4_K_M", ("--backend", "llama.cpp", "--method", "Q4_K_M")),
)
BEST = "best backend"  # of those with the same group size


@dataclass(frozen=True)
class Target:
    """A limit on the ratio of a `figure`: `variant` over `against`. BEST is the backend with the lowest figure."""

    variant: str
    figure: str
    against: str
    limit: float


TARGETS = (
    Target("gptq", "seconds", "llm-compressor", 1 / 4),
    Target("gptq", "seconds", "gptqmodel", 1 / 8),
    Target("gptq", "kl", BEST, 0.55),
    Target("awq+gptq", "seconds", "llm-compressor", 1 / 3),
    Target("awq+gptq", "seconds", "auto-round", 0.05),
    Target("awq+gptq", "kl", BEST, 0.7),
    Target("awq+gptq tune", "kl", BEST, 0.5),
)


def command(variant: Variant, job: QuantizerJob) -> list[str]:
    """The command line of one quantizer. An option of the variant wins over the job's size."""
    sizes = {"--group-size": job.group_size, "--samples": job.samples, "--seq-len": job.seq_len}
    if variant.fixes_groups:
        del sizes["--group-size"]
    options = [part for name, value in sizes.items() for part in (name, str(value))]
    start = [sys.executable, "-c", "from compress.cli import cli; cli()", "quantize", str(job.model)]
    return [*start, *options, *variant.options, "--text", job.text, "--out", str(job.out), "--json"]


def run(variant: Variant, job: QuantizerJob) -> Row:
    """Run one quantizer in its own process. The row has its seconds and peak memory, or the reason for its failure."""
    shutil.rmtree(job.out, ignore_errors=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    del environment["OMP_WAIT_POLICY"]  # each quantizer keeps its default
    answer, log = (job.out.with_name(f"{job.out.name}.{end}") for end in ("json", "stderr"))
    started = time.perf_counter()
    with answer.open("w") as stdout, log.open("w") as stderr:
        process = subprocess.Popen(command(variant, job), stdout=stdout, stderr=stderr, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    row: Row = {"name": variant.name, "command_seconds": time.perf_counter() - started}
    if status:
        return row | {"failed": last_line(log)}
    result = json.loads(answer.read_text())
    peak = result.get("peak_bytes", 1024 * usage.ru_maxrss)
    start = (Checkpoint(job.out).record.get("calibration") or {}).get("start") or {}
    size = {"bytes": result["bytes"], "bits_per_weight": result["bits_per_weight"]}
    seconds = result.get("quantize_seconds", result["seconds"])
    return row | {"seconds": seconds, "peak_gib": peak / 2**30, "start_token": start.get("token"), **size}


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def inspect(row: Row, job: QuantizerJob, vllm: Path | None) -> Row:
    """The row, with the errors that `check` finds, and with --vllm whether vLLM loads it and computes as it should."""
    if "failed" in row:
        return row
    try:
        findings = check_checkpoint(job.out, source=job.model)
    except QCompressError as error:
        return row | {"failed": error.message}
    row = row | {"check_errors": sum(finding["level"] == "error" for finding in findings)}
    if vllm is None:
        return row
    done = subprocess.run([vllm, HERE / "vllm_test.py", job.out], capture_output=True, text=True, check=False)
    return row | {"vllm": done.returncode == 0}


def compare_targets(rows: list[Row]) -> list[Row]:
    """One row per target: the limit, the measured ratio, and whether it is met."""
    backends = {variant.name for variant in VARIANTS if variant.backend and not variant.fixes_groups}
    results = []
    for target in TARGETS:
        values = {row["name"]: row[target.figure] for row in rows if target.figure in row}
        names = backends if target.against == BEST else {target.against}
        against = [values[name] for name in values if name in names]
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


def score(
    model: Path, rows: list[Row], place: Callable[[str], Path], texts: tuple[str, ...], samples: int, seq_len: int
) -> None:
    """Add the drift of each checkpoint from the model to its row, on both texts. Rows with `failed` stay."""
    whole = [row for row in rows if "failed" not in row]
    paths = [place(row["name"]) for row in whole]
    for prefix, text, figures in zip(("", "other_"), texts, (FIGURES, OTHER_FIGURES), strict=False):
        if not paths:
            return
        windows = evaluation_windows(model, paths, text, n_samples=samples, seq_len=seq_len)
        for row, scored in zip(whole, compare_rows(model, paths, windows, report=report)[1:], strict=True):
            row |= {f"{prefix}{key}": scored[key] for key in figures}


@click.command(help=__doc__)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("text")
@click.argument("eval_text")
@out_option("build/bench-quantize", "Folder for checkpoints and logs.")
@click.option("--other-text", help="Second evaluation text, of another kind than EVAL_TEXT.")
@click.option("--vllm", type=click.Path(path_type=Path), help="Python with vLLM, to load every checkpoint.")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=click.Choice([variant.name for variant in VARIANTS]),
    help="Quantizer to run. Repeatable.  [default: all]",
)
@click.option("--group-size", type=int, default=64, show_default=True, help="Weights per scale.")
@click.option("--samples", type=int, default=64, show_default=True, help="Number of calibration windows.")
@click.option("--seq-len", type=int, default=512, show_default=True, help="Tokens per window, of all texts.")
@click.option("--eval-samples", type=int, default=12, show_default=True, help="Number of windows of each other text.")
@json_option
def main(
    model: Path,
    text: str,
    eval_text: str,
    out: Path,
    other_text: str | None,
    vllm: Path | None,
    variants: tuple[str, ...],
    eval_samples: int,
    as_json: bool,
    **sizes: int,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    samples, seq_len = sizes["samples"], sizes["seq_len"]
    rows = []
    for variant in VARIANTS:
        if variants and variant.name not in variants:
            continue
        job = QuantizerJob(model, out / variant.name, text, **sizes)
        rows.append(inspect(run(variant, job), job, vllm))
        report(rows[-1])
    texts = (eval_text, other_text) if other_text else (eval_text,)
    score(model, rows, lambda name: out / name, texts, eval_samples, seq_len)
    targets = [*compare_targets(rows), *roofline_rows(model, rows, samples * seq_len, seq_len)]
    if as_json:
        emit({"rows": rows, "targets": targets, "load_average": os.getloadavg()[0]}, as_json=True)
        return
    emit(rows, as_json=False)
    emit(targets, as_json=False)


if __name__ == "__main__":
    main()

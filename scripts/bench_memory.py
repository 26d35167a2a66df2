"""Check that memory does not grow with the number of blocks: python scripts/bench_memory.py SHALLOW DEEP

SHALLOW and DEEP have blocks of the same shape, such as 2 and 6 blocks from scripts/make_shape.py. They are quantized
one after the other, each in its own process. Three figures are printed: the peak resident memory of the process and its
children, sampled from outside; the peak of the process alone by the kernel's count (VmHWM); and the job's estimate.
"""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import click
import psutil
from script_options import out_option

from compress.cli.console import emit, report
from compress.cli.options import json_option
from compress.core.config import METHODS, QuantizeConfig, parse_size
from compress.model.blocks import BlockModel
from compress.quantize.blocks.memory_estimate import estimate_memory
from compress.quantize.layout.job_plan import plan_quantize

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 0.05  # between two samples of memory
RATIO_LIMIT, BYTES_LIMIT = 1.05, 6e9


def resident(process: psutil.Process) -> int:
    """The bytes that the process and all its children have in memory now."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue  # the process ended after it was listed
    return total


def high_water(pid: int) -> int:
    """The peak resident bytes of the process by the kernel's count (VmHWM). 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def watch(command: list[str], log: Path) -> dict[str, Any]:
    """Run a command. Returns its seconds, sampled peak and VmHWM.

    Raises ClickException, with the path of the log, if the command fails.
    """
    started, sampled, kernel = time.perf_counter(), 0, 0
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with log.open("w") as stream:
        process = psutil.Popen(command, stdout=stream, stderr=stream, env=os.environ | {"PYTHONPATH": paths})
        while process.poll() is None:
            try:
                sampled = max(sampled, resident(process))
            except psutil.NoSuchProcess:
                break
            kernel = max(kernel, high_water(process.pid))
            time.sleep(SECONDS)
    if process.wait():
        raise click.ClickException(f"{' '.join(command)}: the command failed; read {log}")
    return {"seconds": time.perf_counter() - started, "sampled_bytes": sampled, "vmhwm_bytes": kernel}


def estimate(model: Path, config: QuantizeConfig, limit: int) -> int:
    """The job's own estimate of its memory in bytes."""
    checkpoint, plan = plan_quantize(model, config)
    return estimate_memory(BlockModel(checkpoint.config, checkpoint.tensor), plan, config, limit)


def measure(model: Path, text: str, out: Path, config: QuantizeConfig, limit: str) -> dict[str, Any]:
    """Quantize a model and measure it. Returns a row. The checkpoint is removed afterwards."""
    place = out / model.name
    shutil.rmtree(place, ignore_errors=True)
    sizes = {"--group-size": config.group_size, "--samples": config.samples, "--seq-len": config.seq_len}
    options = [part for name, value in sizes.items() for part in (name, str(value))]
    start = [sys.executable, "-c", "from compress.cli import cli; cli()", "quantize", str(model), "--json"]
    options += ["--error-correction", str(config.error_correction), "--activation-memory", limit]
    row = {"name": model.name, "estimate_bytes": estimate(model, config, parse_size(limit))}
    report(row)
    command = [*start, "--method", config.method, "--text", text, "--out", str(place), *options]
    row |= watch(command, out / f"{model.name}.log")
    report(row)  # reported at once, because the next quantization may take an hour
    shutil.rmtree(place)
    return row


@click.command(help=__doc__)
@click.argument("shallow", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("deep", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--text", default="default", show_default=True, help="Calibration text: a file or a bundled text.")
@click.option("--method", type=click.Choice(METHODS), default="gptq", show_default=True, help="Rounding method.")
@click.option(
    "--error-correction",
    type=float,
    default=QuantizeConfig.error_correction,
    show_default=True,
    help="Error-correction strength, 0 to 1.",
)
@click.option(
    "--activation-memory", "limit", default="1GB", show_default=True, help="RAM for activations between stages."
)
@click.option("--group-size", type=int, default=128, show_default=True, help="Weights per scale.")
@click.option("--samples", type=int, default=128, show_default=True, help="Number of calibration windows.")
@click.option("--seq-len", type=int, default=512, show_default=True, help="Tokens per calibration window.")
@out_option("build/bench-memory", "Folder for checkpoints and logs.")
@json_option
def main(shallow: Path, deep: Path, text: str, method: str, limit: str, out: Path, as_json: bool, **sizes: Any) -> None:
    out.mkdir(parents=True, exist_ok=True)
    config = QuantizeConfig(method=method, **sizes)
    rows = [measure(model, text, out, config, limit) for model in (shallow, deep)]
    ratio, peak = rows[1]["vmhwm_bytes"] / rows[0]["vmhwm_bytes"], max(row["sampled_bytes"] for row in rows)
    targets = [
        {"name": "deep / shallow", "target_at_most": RATIO_LIMIT, "measured": ratio, "met": ratio <= RATIO_LIMIT},
        {"name": "peak bytes", "target_at_most": BYTES_LIMIT, "measured": peak, "met": peak <= BYTES_LIMIT},
    ]
    if as_json:
        emit({"rows": rows, "targets": targets}, as_json=True)
        return
    emit(rows, as_json=False)
    emit(targets, as_json=False)


if __name__ == "__main__":
    main()

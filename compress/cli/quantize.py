"""qcompress quantize: turn a 16-bit checkpoint into a 4-bit one."""

from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, imports, print_written, report, size_fact
from compress.cli.model_path import MODEL, as_typed
from compress.cli.options import (
    Command,
    Parsed,
    device_option,
    dry_run_option,
    json_option,
    out_option,
    restart_option,
    set_options,
    settings_options,
    shared_option,
)
from compress.core.config import QuantizeConfig, parse_size


@click.command("quantize", cls=Command)
@click.argument("model", type=MODEL)
@out_option("Folder for the quantized checkpoint.")
@settings_options(QuantizeConfig)
@shared_option(
    "--activation-memory",
    group="Resources",
    type=Parsed(parse_size),
    metavar="SIZE",
    default="1GB",
    show_default=True,
    help="RAM for calibration activations. If more is needed, blocks are re-run per stage: slower, identical output.",
)
@device_option
@dry_run_option
@restart_option
@json_option
def command(
    model: Path,
    out: Path,
    activation_memory: int,
    device: str,
    dry_run: bool,
    restart: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Quantize MODEL to 4 bits and write a checkpoint that vLLM loads.

    MODEL is a 16-bit checkpoint: a folder or a hub id. The exact size is printed before any work starts; `qcompress
    plan` lists other layouts. The result must pass `qcompress check`, otherwise nothing is written. If a run is killed,
    the same command continues it. Under torchrun, the calibration windows are divided among the
    processes.

    \b
    qcompress quantize smollm2 -o smollm2-awq
    qcompress quantize smollm2 --method gptq --group-size 64 --text notes.txt -o smollm2-gptq
    qcompress quantize student --format compressed-tensors --head-bits 4 --embedding-bits 8 -o small
    qcompress quantize student --max-size 2GB --dry-run -o student-awq
    """
    config = QuantizeConfig(**settings)
    config.check_used(set_options())
    if dry_run:
        emit(plan(model, out, config), as_json=as_json)
        return
    with imports():
        from compress.core.device import pick_device
        from compress.quantize.auto import quantize
        from compress.quantize.job import RunOptions
        from compress.quantize.processes import join_processes

    processes = join_processes()
    run = RunOptions(restart, activation_memory, pick_device(device), processes, report)
    row = quantize(model, out, config, run)
    processes.leave()
    if processes.rank == 0:
        emit(row, as_json=as_json)
        print_closing(model, out, as_json)


def plan(model: Path, out: Path, config: QuantizeConfig) -> dict[str, Any]:
    """The row that --dry-run prints. Raises QCompressError if the job would be refused before any work."""
    from compress.checkpoint.write import check_out
    from compress.quantize.layout.job_plan import plan_quantize
    from compress.quantize.layout.plan import plan_row
    from compress.quantize.log import LOG, log_path

    check_out(out)
    LOG.check(log_path(out))
    check_texts(config)
    return plan_row(str(model), plan_quantize(model, config)[1], config)


def check_texts(config: QuantizeConfig) -> None:
    """Raises CalibrationError if a calibration text cannot be read."""
    from calibration.corpus import check_source

    for text in config.text if config.reads_text else ():
        check_source(text)


def print_closing(model: Path, out: Path, as_json: bool) -> None:
    """Print the closing line, with the size of the checkpoint and its share of MODEL's size."""
    from compress.checkpoint.read import Checkpoint

    sizes = Checkpoint(out).record["size"]
    print_written(
        out,
        size_fact(sizes["bytes"], sizes["source_bytes"]),
        "checks passed",
        next_command=f"qcompress verify {as_typed(model)} {out}",
        as_json=as_json,
    )

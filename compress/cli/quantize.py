"""qcompress quantize: turn a 16-bit checkpoint into a 4-bit one."""

from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, imports, print_written, report, size_fact
from compress.cli.model_path import MODEL, FilledPath, as_typed
from compress.cli.options import (
    Command,
    Parsed,
    check_hardware,
    device_option,
    dry_run_option,
    hardware_option,
    json_option,
    out_option,
    restart_option,
    set_options,
    settings_options,
    shared_option,
)
from compress.core.backend_config import BackendChoice, BackendConfig, make_config
from compress.core.config import QuantizeConfig, parse_size
from compress.pipeline.quantize import BackendOptions, Settings, plan_by, quantize_by


@click.command("quantize", cls=Command)
@click.argument("model", type=MODEL)
@out_option("Folder for the quantized checkpoint.")
@settings_options(BackendChoice, QuantizeConfig)
@shared_option(
    "--install", group="Resources", is_flag=True, help="Install the backend first if it is missing. This downloads it."
)
@shared_option(
    "--backend-python",
    group="Resources",
    type=FilledPath(path_type=Path),
    help="Python in which the backend is installed.  [default: that of `qcompress backends install`]",
)
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
@hardware_option
@restart_option
@json_option
def command(
    model: Path,
    out: Path,
    activation_memory: int,
    device: str,
    dry_run: bool,
    hardware: str | None,
    restart: bool,
    as_json: bool,
    install: bool,
    backend_python: Path | None,
    **settings: Any,
) -> None:
    """Quantize MODEL to 4 bits and write a checkpoint that vLLM loads.

    MODEL is a 16-bit checkpoint: a folder or a hub id. The exact size is printed before any work starts; `qcompress
    plan` lists other layouts. The result must pass `qcompress check`, otherwise nothing is written. If a run is killed,
    the same command continues it. Under torchrun, the calibration windows are divided among the processes. With
    --backend, another program quantizes, and its result must pass the same check; a killed run starts over.

    \b
    qcompress quantize smollm2 -o smollm2-awq
    qcompress quantize smollm2 --method gptq --group-size 64 --text notes.txt -o smollm2-gptq
    qcompress quantize student --format compressed-tensors --head-bits 4 --embedding-bits 8 -o small
    qcompress quantize student --max-size 2GB --dry-run -o student-awq
    qcompress quantize smollm2 --backend auto-round --install -o smollm2-auto-round
    """
    check_hardware(hardware, dry_run)
    config = make_config(settings | {"activation_memory": activation_memory}, set_options())
    options = BackendOptions(install, backend_python)
    check_backend_options(config, options)
    if dry_run:
        emit(plan(model, out, config, hardware), as_json=as_json)
        return
    with imports():
        from compress.core.device import pick_device
        from compress.quantize.job import RunOptions
        from compress.quantize.processes import join_processes

    device = pick_device(device)
    processes = join_processes(device)
    run = RunOptions(restart, activation_memory, device, processes, report)
    row = quantize_by(model, out, config, run, options)
    processes.leave()
    if processes.rank == 0:
        emit(row, as_json=as_json)
        print_closing(model, out, as_json)


def check_backend_options(config: Settings, options: BackendOptions) -> None:
    """Raises UsageError if options of backends are set for qcompress's own methods, or contradict each other."""
    if isinstance(config, QuantizeConfig) and options != BackendOptions():
        raise click.UsageError("--install and --backend-python need --backend.")
    if options.install and options.python:
        raise click.UsageError("--install and --backend-python exclude each other; use one of them.")


def plan(model: Path, out: Path, config: Settings, hardware: str | None) -> dict[str, Any]:
    """The row that --dry-run prints. `hardware` is the name of a GPU to estimate, or None; backends have no estimate.

    Raises QCompressError if the job would be refused before any work.
    """
    from compress.checkpoint.write import check_out
    from compress.core.cards import find_card
    from compress.quantize.gpu_estimate import gpu_row
    from compress.quantize.layout.job_plan import plan_quantize
    from compress.quantize.layout.plan import plan_row
    from compress.quantize.log import LOG, log_path

    check_out(out)
    LOG.check(log_path(out))
    check_texts(config)
    if not isinstance(config, QuantizeConfig):
        return plan_by(str(model), plan_quantize(model, config.layout)[0].config, config)
    layout = plan_quantize(model, config)[1]
    gpu = gpu_row(layout, config, find_card(hardware)) if hardware else {}
    return plan_row(str(model), layout, config) | gpu


def check_texts(config: Settings) -> None:
    """Raises CalibrationError if a calibration text cannot be read."""
    from calibration.corpus import check_source

    for text in config.text if isinstance(config, BackendConfig) or config.reads_text else ():
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

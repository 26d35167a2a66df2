"""quantize_with_backend(): the job behind `qcompress quantize --backend NAME`.

The backend gets the token windows that qcompress's own methods would read, start token included. What it writes is
checked, recorded and published like every other checkpoint. A run that was killed leaves a work folder, which the next
run removes: a backend starts over, it never continues.
"""

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from calibration.start import format_start_token
from calibration.windows import Windows
from compress.backends.child import ChildResult, run_child
from compress.backends.environment import find_interpreter, installed, lock_digest
from compress.backends.install import install
from compress.backends.log import LOG, begin_log, log_path
from compress.backends.publish import BackendJob, publish
from compress.backends.request import write_request
from compress.backends.table import Backend, find_backend
from compress.backends.work import open_work_folder
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint
from compress.core.backend_config import GGUF, BackendConfig
from compress.core.errors import QCompressError
from compress.core.report import Report, Row, silent
from compress.quantize.blocks.source import choose_compute_dtype, make_blocks
from compress.quantize.calibrate import job_start, job_windows
from compress.quantize.layout.job_plan import plan_quantize
from compress.quantize.layout.plan import storage_dtype
from compress.ship.gguf.export import write_plain_gguf

ROOM = 4  # times the source's bytes: the backend's checkpoint, a copy, and its scratch files
GGUF_SOURCE = "source.gguf"


@dataclass(frozen=True)
class BackendRun:
    """The options of a run that do not change the result.

    `install` installs the backend if it is missing. `python` is an interpreter that has the backend already.
    `restart` discards unfinished work of qcompress's own methods.
    """

    device: str = "cpu"
    install: bool = False
    python: Path | None = None
    restart: bool = False
    report: Report = silent


DEFAULT_BACKEND_RUN = BackendRun()


def quantize_with_backend(
    model: PathOrCheckpoint, out: Path, config: BackendConfig, run: BackendRun = DEFAULT_BACKEND_RUN
) -> Row:
    """Quantize `model` into `out` by a backend, and return the summary row. A failed job leaves nothing at `out`.

    Raises QCompressError, before any work, if the backend is not installed or needs an accelerator; later if it fails
    or writes something else than requested. Raises GateFailure if its checkpoint breaks a rule of `check`.
    """
    started = time.perf_counter()
    backend = find_backend(config.backend)
    check_device(backend, config.method, run.device)
    source, plan = plan_quantize(model, config.layout)
    config = config if config.format == GGUF else config.with_group_size(plan.scheme.group_size)
    LOG.check(log_path(out))
    python = ready_interpreter(backend, run)
    with open_work_folder(out, backend.name, ROOM * source.bytes, restart=run.restart) as folder:
        begin_log(log_path(out), backend.name)
        job = make_job(source, config, backend, python, run)
        result = run_backend(job, backend, python, folder, log_path(out), run)
        size = publish(job, folder, out, result)
    return {
        "model": str(source.path),
        "out": str(out),
        **{name: getattr(config, name) or None for name in ("backend", "method", "format", "group_size")},
        **size,
        "quantize_seconds": round(result.seconds, 1),
        "peak_bytes": result.peak_bytes,
        "seconds": round(time.perf_counter() - started, 1),
    }


def run_backend(
    job: BackendJob, backend: Backend, python: Path, folder: Path, log: Path, run: BackendRun
) -> ChildResult:
    """Write the request, and run the backend on it."""
    threads = torch.get_num_threads()
    dtype = str(storage_dtype(job.source.config))
    facts = {"packages": list(backend.packages), "device": run.device, "threads": threads, "dtype": dtype}
    more = gguf_request(job, folder) if job.config.format == GGUF else {}
    write_request(folder, job.source.path, job.config, job.windows.ids, facts | more)
    settings: dict[str, Any] = {"threads": threads, "variables": backend.variables}
    return run_child(python, backend.driver, folder, log, run.report, **settings)


def check_device(backend: Backend, method: str, device: str) -> None:
    """Raises QCompressError if the method needs an accelerator and the job runs on a CPU."""
    if device == "cpu" and method in backend.needs_gpu:
        raise QCompressError(
            f"--backend {backend.name} --method {method}: cannot run on a CPU: {backend.needs_gpu[method]}; use a "
            "machine with a GPU, or another backend"
        )


def ready_interpreter(backend: Backend, run: BackendRun) -> Path:
    """The interpreter of a backend, which is installed first if `run.install` is True and it is missing."""
    if run.install and run.python is None and not installed(backend):
        install(backend, report=run.report)
    return find_interpreter(backend, run.python)


def make_job(source: Checkpoint, config: BackendConfig, backend: Backend, python: Path, run: BackendRun) -> BackendJob:
    """The job with its windows: the same token ids that qcompress's own methods read with the same settings."""
    windows, start = read_windows(source, config, run.device)
    token = format_start_token(start["token"])
    run.report({"text": ", ".join(config.text), "windows": windows.manifest["n_samples"], "start_token": token})
    about = {"name": backend.name, "lock": None if run.python else lock_digest(backend), "python": os.fspath(python)}
    return BackendJob(source, config, windows, start, source.small_files_digest, about)


def read_windows(source: Checkpoint, config: BackendConfig, device: str) -> tuple[Windows, Row]:
    """The calibration windows, and the measurement that chose their start token."""
    layout = config.layout
    layout = replace(layout, compute_dtype=choose_compute_dtype(layout, source, device))
    start = job_start(make_blocks(source, layout, device), source.tokenizer, layout)
    return job_windows(source.tokenizer, layout, start.token), asdict(start)


def gguf_request(job: BackendJob, folder: Path) -> Row:
    """What a driver of llama.cpp needs besides: the model as a .gguf file, and the windows as text."""
    write_plain_gguf(job.source, folder / GGUF_SOURCE)
    tokenizer = job.source.tokenizer
    text = "\n".join(str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in job.windows.ids.tolist())
    (folder / "windows.txt").write_text(text, encoding="utf-8")
    return {name: str((folder / name).absolute()) for name in (GGUF_SOURCE, "windows.txt")}

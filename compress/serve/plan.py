"""Plan a service: check the checkpoints, choose the runtime, compute sizes and command lines. Nothing is started."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from calibration.chat import has_template
from compress.checkpoint.check.run import check_checkpoint, describe_errors, error_rows
from compress.checkpoint.hub import model_name, numbered_names
from compress.checkpoint.load import open_for_text
from compress.checkpoint.read import Checkpoint
from compress.core.errors import GateFailure, QCompressError
from compress.serve.engine.command import EngineCommand, fallback_command, vllm_command
from compress.serve.engine.probe import Environment, probe
from compress.serve.engine.process import check_log
from compress.serve.engine.sizes import EngineSizes, check_cpu_memory, fallback_sizes, vllm_sizes
from compress.serve.settings import Engines


@dataclass(frozen=True)
class PlannedEngine:
    """The plan of one engine: checkpoint, runtime, sizes with their reasons, and log.

    `command` returns the command line of an engine that listens on a socket.
    """

    name: str
    checkpoint: Checkpoint
    runtime: str
    sizes: EngineSizes
    command: Callable[[Path], EngineCommand]
    log: Path


def plan_engines(paths: Sequence[Path], engines: Engines) -> list[PlannedEngine]:
    """One engine per checkpoint.

    Raises GateFailure for a checkpoint that `check` refuses. Raises QCompressError for one that does not fit, or if a
    file of another program is in the place of a log.
    """
    checkpoints = [open_checked(path, engines.tensor_parallel_size) for path in paths]
    environment = probe(engines.vllm_python) if engines.runtime != "transformers" else Environment("", None)
    runtime = choose_runtime(engines, environment)
    names = numbered_names([model_name(path) for path in paths])  # a path would reveal folders of this machine
    logs = [engines.log_folder / f"{name}.log" for name in names]
    for log in logs:
        check_log(log)
    if runtime == "vllm" and not environment.gpus:
        check_cpu_memory(checkpoints)
    planned = []
    for name, checkpoint, log in zip(names, checkpoints, logs, strict=True):
        sizes, command = start_of(checkpoint, name, runtime, environment, engines, len(paths))
        planned.append(PlannedEngine(name, checkpoint, runtime, sizes, command, log))
    return planned


def start_of(
    checkpoint: Checkpoint, name: str, runtime: str, environment: Environment, engines: Engines, count: int
) -> tuple[EngineSizes, Callable[[Path], EngineCommand]]:
    """The sizes and the command of one of `count` engines."""
    if runtime == "transformers":
        sizes = fallback_sizes(checkpoint, engines.context, engines.queue)
        return sizes, partial(fallback_command, checkpoint.path, name, sizes=sizes)
    gpus = engines.tensor_parallel_size
    limits = {"context": engines.context, "queue": engines.queue}
    sizes = vllm_sizes(checkpoint, environment, gpus=gpus, engines=count, **limits)
    return sizes, partial(
        vllm_command, checkpoint.path, name, environment=environment, sizes=sizes, gpus=gpus, engines=count
    )


def open_checked(path: Path, gpus: int) -> Checkpoint:
    """The checkpoint, after all rules of `check`. Raises GateFailure with the first broken one."""
    checkpoint = open_for_text(path, readable=False)
    if not has_template(checkpoint.tokenizer):
        raise QCompressError(f"{path}: the tokenizer has no chat template; serve an instruct model, or add one")
    errors = error_rows(check_checkpoint(checkpoint, tensor_parallel_size=gpus))
    if errors:
        raise GateFailure(f"{path}: {describe_errors(errors)}; `qcompress check {path}` lists all")
    return checkpoint


def choose_runtime(engines: Engines, environment: Environment) -> str:
    """The runtime, "vllm" or "transformers". Raises QCompressError if the requested runtime is not installed."""
    if engines.runtime == "vllm" and environment.vllm is None:
        raise QCompressError("--runtime vllm: vLLM is not installed here; install it, or set --vllm-python")
    runtime = "vllm" if environment.vllm is not None else "transformers"
    gpus = engines.tensor_parallel_size
    if gpus > 1 and (runtime == "transformers" or environment.gpus < gpus):
        there = f"vLLM finds {environment.gpus} GPUs" if runtime == "vllm" else "transformers uses one GPU"
        raise QCompressError(f"--tensor-parallel-size {gpus}: {there}; lower it")
    return runtime

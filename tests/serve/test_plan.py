"""What is planned before anything starts."""

from pathlib import Path

import pytest

from compress.core.errors import QCompressError
from compress.serve.engine.probe import Environment, probe
from compress.serve.plan import choose_runtime, unique
from compress.serve.settings import Engines


def test_equal_names_are_numbered_and_no_path_is_shown():
    assert unique([Path("/secret/a/qwen"), Path("/secret/b/qwen"), Path("/x/other")]) == ["qwen-1", "qwen-2", "other"]


@pytest.mark.parametrize(
    ("runtime", "vllm", "chosen"),
    [("auto", "0.32.0", "vllm"), ("auto", None, "transformers"), ("vllm", "0.32.0", "vllm")],
)
def test_vllm_answers_where_it_is_installed(runtime, vllm, chosen):
    assert choose_runtime(Engines(runtime=runtime), Environment("python", vllm)) == chosen


def test_a_runtime_that_is_missing_is_named():
    with pytest.raises(QCompressError, match="--runtime vllm"):
        choose_runtime(Engines(runtime="vllm"), Environment("python", None))


@pytest.mark.parametrize("vllm", ["0.32.0", None])
def test_more_gpus_than_there_are_is_an_error(vllm):
    with pytest.raises(QCompressError, match="--tensor-parallel-size 4"):
        choose_runtime(Engines(tensor_parallel_size=4), Environment("python", vllm, 2, 10**10, 90))


def test_this_python_is_probed_in_a_process():
    environment = probe()
    assert environment.gpus >= 0 and (environment.vllm is None or environment.vllm[0].isdigit())

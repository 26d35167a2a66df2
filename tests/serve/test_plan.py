"""What is planned before anything starts."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from compress.core.errors import QCompressError
from compress.serve.engine.probe import Environment, probe
from compress.serve.plan import choose_runtime, plan_engines
from compress.serve.settings import Engines


def test_equal_names_are_numbered_and_no_path_is_shown(tiny_llama, tmp_path):
    paths = [tmp_path / name for name in ("a/q", "b/q", "c/q-1")]
    for path in paths:
        shutil.copytree(tiny_llama, path)
    planned = plan_engines(paths, Engines(runtime="transformers", logs=tmp_path / "logs"))
    assert [one.name for one in planned] == ["q-2", "q-3", "q-1"]
    assert [one.log.name for one in planned] == ["q-2.log", "q-3.log", "q-1.log"]


def test_the_command_listens_on_the_socket_that_it_is_made_for(tiny_llama, tmp_path):
    (planned,) = plan_engines([tiny_llama], Engines(runtime="transformers", logs=tmp_path))
    command = planned.command(tmp_path / "7.sock")
    assert command.socket == tmp_path / "7.sock" and str(tmp_path / "7.sock") in command.arguments


@pytest.mark.parametrize("name", ["llama.log", "llama.log.old"])
def test_a_foreign_file_in_the_place_of_a_log_is_refused(tiny_llama, tmp_path, name):
    (tmp_path / name).write_text("a diary")
    with pytest.raises(QCompressError, match=f"{name}: exists, and qcompress did not write it.*--logs"):
        plan_engines([tiny_llama], Engines(runtime="transformers", logs=tmp_path))


@pytest.mark.parametrize(("free", "fits"), [(2**31 + 1000, False), (2**32, True)])
def test_on_a_cpu_the_weights_must_fit_beside_the_kv_cache(tiny_llama, tmp_path, monkeypatch, free, fits):
    monkeypatch.setattr("compress.serve.plan.probe", lambda python: Environment("python", "0.32.0"))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free))
    engines = Engines(runtime="vllm", logs=tmp_path)
    if fits:
        assert plan_engines([tiny_llama], engines)[0].runtime == "vllm"
    else:
        with pytest.raises(QCompressError, match="fewer or smaller checkpoints"):
            plan_engines([tiny_llama], engines)
    with pytest.raises(QCompressError, match=r"needs about 4\.[34] GB"):
        plan_engines([tiny_llama, tiny_llama], engines)


@pytest.mark.parametrize(
    ("option", "value"),
    [("runtime", "vllm"), ("vllm_python", "python"), ("tensor_parallel_size", 2), ("logs", Path("logs"))],
)
def test_an_option_without_effect_beside_an_upstream_is_refused(option, value):
    name = f"--{option.replace('_', '-')}"
    with pytest.raises(QCompressError, match=f"{name}: has no effect with --upstream"):
        Engines(upstream="http://127.0.0.1:8000", **{option: value})
    assert getattr(Engines(**{option: value}), option) == value


def test_a_vllm_environment_is_refused_where_transformers_answers():
    with pytest.raises(QCompressError, match="--vllm-python: has no effect with --runtime transformers"):
        Engines(runtime="transformers", vllm_python="python")


def test_a_python_that_fails_is_blamed_on_an_option_only_if_it_was_given(monkeypatch):
    with pytest.raises(QCompressError, match=r"^--vllm-python /nothing"):
        probe("/nothing")
    monkeypatch.setattr("sys.executable", "/nothing")
    with pytest.raises(QCompressError, match=r"^/nothing: .*set --vllm-python"):
        probe()


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

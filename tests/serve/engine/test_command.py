"""vLLM's command line: computed sizes, a pinned JSON backend, and no secret that other users can read."""

from pathlib import Path

from compress.serve.engine.command import fallback_command, vllm_command
from compress.serve.engine.probe import Environment
from compress.serve.engine.sizes import EngineSizes

SIZES = EngineSizes(4096, 7, 28, "bfloat16", 0.46)


def command(environment, **options):
    return vllm_command(Path("/models/m"), "m", Path("/run/0.sock"), environment, SIZES, **options)


def option(start, name):
    return start.arguments[start.arguments.index(name) + 1]


def test_the_sizes_are_on_the_command_line():
    start = command(Environment("/venv/bin/python", "0.32.0", 4, 80 * 10**9, 90), gpus=4)
    assert start.arguments[:3] == ["/venv/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    values = {
        "--model": "/models/m",
        "--uds": "/run/0.sock",
        "--served-model-name": "m",
        "--max-model-len": "4096",
        "--max-num-seqs": "7",
        "--max-num-queued-reqs": "28",
        "--dtype": "bfloat16",
        "--tensor-parallel-size": "4",
        "--gpu-memory-utilization": "0.46",
        "--structured-outputs-config.backend": "xgrammar",
    }
    assert {name: option(start, name) for name in values} == values


def test_the_key_is_random_and_only_in_the_environment():
    first, second = (command(Environment("python", "0.32.0")) for _ in range(2))
    assert first.key != second.key and len(first.key) > 30
    assert first.variables["VLLM_API_KEY"] == first.key
    assert first.key not in " ".join(first.arguments) and first.key not in repr(first)


def test_a_cpu_has_no_share_of_a_gpu_and_runs_json_on_the_first_model_runner():
    start = command(Environment("python", "0.32.0"))
    assert "--gpu-memory-utilization" not in start.arguments and "--enforce-eager" in start.arguments
    assert start.variables["VLLM_USE_V2_MODEL_RUNNER"] == "0"


def test_no_engine_reports_anything_or_asks_a_hub():
    for start in (command(Environment("python", "0.32.0")), fallback_command(Path("m"), "m", Path("s"), SIZES)):
        assert start.variables["HF_HUB_OFFLINE"] == "1" and start.variables["VLLM_NO_USAGE_STATS"] == "1"


def test_several_engines_on_a_cpu_are_not_bound_to_the_same_cores():
    cpu, gpu = Environment("python", "0.32.0"), Environment("python", "0.32.0", 1, 10**10, 90)
    bound = "VLLM_CPU_OMP_THREADS_BIND"
    assert command(cpu, engines=2).variables[bound] == "nobind"
    assert bound not in command(cpu).variables and bound not in command(gpu, engines=2).variables

"""The pipe to vLLM, with a stand-in for vLLM that echoes its prompts: answers, errors, and the end of the process."""

import time
from contextlib import closing
from pathlib import Path

import pytest

from compress.checkpoint.read import Checkpoint
from compress.core.sampling import Answer, Sampling
from compress.runtimes.vllm_offline import VllmFailedError
from compress.runtimes.vllm_process import VllmProcess, longest_request, visible_gpu

pytestmark = pytest.mark.slow  # runs whole jobs

STAND_IN = """
import os, subprocess
print("noise on stdout", flush=True)
class SamplingParams:
    def __init__(self, temperature, max_tokens, top_p=1.0, seed=None):
        self.max_tokens = max_tokens if seed is None else seed
class Made:
    def __init__(self, ids, room):
        self.token_ids, self.finish_reason = ids[:room], "length" if len(ids) > room else "stop"
        self.outputs = [self]
class LLM:
    def __init__(self, path, **options):
        if "broken" in path: raise ValueError("no such layer")
        assert options["max_model_len"] == 1024
        if "CHILD" in os.environ:
            with open(os.environ["CHILD"], "w") as file:
                file.write(str(subprocess.Popen(["sleep", "60"]).pid))
    def generate(self, prompts, params, use_tqdm):
        print("more noise")
        return [Made(prompt["prompt_token_ids"], one.max_tokens) for prompt, one in zip(prompts, params, strict=True)]
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "vllm.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")


def test_answers_keep_the_order_of_prompts_and_lack_the_end_token(stand_in, tiny_llama):
    with closing(VllmProcess(Checkpoint(tiny_llama))) as runtime:
        assert runtime.generate([[1, 2, 3], [4]], Sampling(8)) == [Answer([1, 2], True), Answer([], True)]
        assert runtime.generate([[5, 6, 7]], Sampling(2)) == [Answer([5, 6], False)]


def test_each_prompt_is_sampled_with_its_seed(stand_in, tiny_llama):
    with closing(VllmProcess(Checkpoint(tiny_llama))) as runtime:  # the stand-in uses the seed as the token limit
        answers = runtime.generate([[1, 2, 3, 4], [1, 2, 3, 4]], Sampling(8, temperature=1.0), [9, 2])
    assert answers == [Answer([1, 2, 3], True), Answer([1, 2], False)]


def test_gpu_numbers_count_the_visible_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [visible_gpu(number) for number in (0, 1, 2)] == ["4", "6", "4"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpu(1) == "1"


def test_the_error_names_why_vllm_failed(stand_in, tiny_llama, tmp_path):
    broken = tmp_path / "broken"
    broken.symlink_to(tiny_llama)
    with closing(VllmProcess(Checkpoint(broken))) as runtime, pytest.raises(VllmFailedError) as caught:
        runtime.generate([[1]], Sampling(8))
    assert caught.value.message == "ValueError: no such layer"
    assert caught.value.format_message().startswith("vLLM failed: ValueError: no such layer; use --runtime")


def test_close_ends_every_process_of_vllm(stand_in, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("CHILD", str(tmp_path / "child"))
    with closing(VllmProcess(Checkpoint(tiny_llama))) as runtime:
        runtime.generate([[1]], Sampling(8))
        child = int((tmp_path / "child").read_text())
        assert alive(child)
    for _ in range(100):
        if not alive(child):
            return
        time.sleep(0.05)
    pytest.fail(f"process {child} is still there")


def alive(process):
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def test_the_longest_request_is_the_models_context(tiny_llama):
    assert longest_request(Checkpoint(tiny_llama)) == 1024

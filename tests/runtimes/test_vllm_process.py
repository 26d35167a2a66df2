"""The pipe to vLLM, with a stand-in for vLLM that echoes its prompts: what crosses it, and how its end is told."""

import time
from pathlib import Path

import pytest

from compress.checkpoint.read import Checkpoint
from compress.core.sampling import Answer, Sampling
from compress.runtimes.vllm_offline import VllmFailedError
from compress.runtimes.vllm_process import longest, visible_gpu, vllm_engine, vllm_sampler

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


def test_every_prompt_is_answered_in_order_without_the_token_that_ended_it(stand_in, tiny_llama):
    with vllm_engine(Checkpoint(tiny_llama)) as engine:
        assert engine([[1, 2, 3], [4]], 8) == [[1, 2], []]
        assert engine([[5, 6, 7]], 2) == [[5, 6]]


def test_a_drawn_answer_has_the_seed_of_its_prompt_and_tells_whether_it_ended(stand_in, tiny_llama):
    with vllm_sampler(Checkpoint(tiny_llama)) as sampler:  # the stand-in takes a seed for the number of tokens
        found = sampler([[1, 2, 3, 4], [1, 2, 3, 4]], [9, 2], Sampling(8, temperature=1.0))
    assert found == [Answer([1, 2, 3], True), Answer([1, 2], False)]


def test_a_process_takes_its_gpu_out_of_those_it_may_see(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [visible_gpu(number) for number in (0, 1, 2)] == ["4", "6", "4"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpu(1) == "1"


def test_an_engine_that_fails_tells_its_cause(stand_in, tiny_llama, tmp_path):
    broken = tmp_path / "broken"
    broken.symlink_to(tiny_llama)
    with pytest.raises(VllmFailedError, match="ValueError: no such layer"), vllm_engine(Checkpoint(broken)) as engine:
        engine([[1]], 8)


def test_no_process_of_an_engine_is_left(stand_in, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("CHILD", str(tmp_path / "child"))
    with vllm_engine(Checkpoint(tiny_llama)) as engine:
        engine([[1]], 8)
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


def test_the_longest_text_fits_the_model(tiny_llama):
    assert longest(Checkpoint(tiny_llama)) == 1024

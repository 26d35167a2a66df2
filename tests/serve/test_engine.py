"""The pipe to vLLM, with a stand-in for vLLM that echoes its prompts: what crosses it, and how its end is told."""

import pytest

from compress.serve.engine import longest, vllm_engine
from compress.serve.offline import VllmFailedError

STAND_IN = """
print("noise on stdout", flush=True)
class SamplingParams:
    def __init__(self, temperature, max_tokens): self.max_tokens = max_tokens
class Made:
    def __init__(self, ids, room):
        self.token_ids, self.finish_reason = ids[:room], "length" if len(ids) > room else "stop"
        self.outputs = [self]
class LLM:
    def __init__(self, path, **options):
        if "broken" in path: raise ValueError("no such layer")
        assert options["max_model_len"] == 1024
    def generate(self, prompts, params, use_tqdm):
        print("more noise")
        return [Made(prompt["prompt_token_ids"], params.max_tokens) for prompt in prompts]
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "vllm.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")


def test_every_prompt_is_answered_in_order_without_the_token_that_ended_it(stand_in, tiny_llama):
    with vllm_engine(tiny_llama) as engine:
        assert engine([[1, 2, 3], [4]], 8) == [[1, 2], []]
        assert engine([[5, 6, 7]], 2) == [[5, 6]]


def test_an_engine_that_fails_tells_its_cause(stand_in, tiny_llama, tmp_path):
    broken = tmp_path / "broken"
    broken.symlink_to(tiny_llama)
    with pytest.raises(VllmFailedError, match="ValueError: no such layer"), vllm_engine(broken) as engine:
        engine([[1]], 8)


def test_the_longest_text_fits_the_model(tiny_llama):
    assert longest(tiny_llama) == 1024

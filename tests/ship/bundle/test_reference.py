import json
from types import SimpleNamespace

import pytest
import torch

from compress.checkpoint.load import load_model, open_for_text
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.ship.bundle.reference import (
    FACTOR,
    FLOORS,
    difference,
    make_limits,
    make_reference,
    round_inputs,
    rounded,
)


@pytest.fixture
def reference(session_bundle):
    return json.loads((session_bundle / "smoke.json").read_text())


def test_the_stored_tokens_are_the_most_likely_ones_after_the_stored_text(reference, tiny_awq):
    model = load_model(Checkpoint(tiny_awq))
    for prompt in reference["prompts"][:2]:
        ids = prompt["ids"] + prompt["tokens"][:-1]
        logits = model(torch.tensor([ids])).logits[0, len(prompt["ids"]) - 1 :]
        assert logits.argmax(-1).tolist() == [top[0][0] for top in prompt["top"]]
        scores = logits.log_softmax(-1)
        for step, top in enumerate(prompt["top"]):
            assert [float(scores[step, token]) for token, _ in top] == pytest.approx([lp for _, lp in top], abs=2e-4)


def test_a_stop_token_is_never_followed(reference, tiny_awq):
    stop = Checkpoint(tiny_awq).tokenizer.eos_token_id
    assert all(len(prompt["tokens"]) == 32 and stop not in prompt["tokens"] for prompt in reference["prompts"])


def test_the_same_weights_in_float32_differ_by_the_rounding_of_the_file_only(reference, tiny_awq):
    model = load_model(Checkpoint(tiny_awq))
    assert all(difference(model, prompt)["mean"] < 1e-4 for prompt in reference["prompts"])


@pytest.mark.parametrize(("runtime", "dtype"), [("vllm", "bfloat16"), ("llama.cpp", "float16")])
def test_the_rounding_of_a_runtime_makes_a_difference(reference, tiny_awq, runtime, dtype):
    model = load_model(Checkpoint(tiny_awq))
    with rounded(model, runtime, dtype):
        assert difference(model, reference["prompts"][0])["mean"] > 1e-3


def test_a_model_that_does_not_fit_in_memory_is_refused_before_it_is_loaded(tiny_awq, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr("compress.ship.bundle.reference.load_model", None)
    with pytest.raises(QCompressError, match=r"needs about .* GB of memory.* use a larger machine"):
        make_reference(open_for_text(tiny_awq), "tiny", "vllm", "float16", None)


def test_inputs_are_rounded_to_255_levels_per_block():
    inputs = torch.randn(3, 64)
    (codes,) = round_inputs(torch.nn.Identity(), (inputs,))
    blocks = inputs.reshape(-1, 32)
    step = blocks.abs().amax(1, keepdim=True) / 127
    assert ((codes.reshape(-1, 32) - blocks).abs() <= 0.51 * step + 0.001 * blocks.abs()).all()
    assert torch.equal(round_inputs(torch.nn.Identity(), (torch.zeros(1, 32),))[0], torch.zeros(1, 32))


def test_limits_are_a_multiple_of_the_differences_but_never_below_the_floors():
    small = make_limits([{"mean": 0.0, "largest": 0.0}])
    assert small == FLOORS
    large = make_limits([{"mean": 0.1, "largest": 0.5}, {"mean": 0.3, "largest": 0.2}])
    assert large == pytest.approx({"mean": FACTOR * 0.2, "largest": FACTOR * 0.5, "tie": FACTOR * 1.0})


def test_a_model_that_overflows_is_refused():
    with pytest.raises(QCompressError, match="no finite log-probabilities"):
        make_limits([{"mean": float("nan"), "largest": 0.1}])

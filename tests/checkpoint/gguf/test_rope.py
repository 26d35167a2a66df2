"""Rotary scaling of a file becomes rope_parameters with the same frequencies, or is refused by name."""

import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from compress.checkpoint.gguf.rope import factors_scaling, rope_parameters
from compress.checkpoint.gguf.shards import GgufModel
from compress.core.errors import QCompressError


def read(spec, tmp_path, channels=16):
    return rope_parameters(GgufModel(spec.write(tmp_path / "model.gguf")), spec.architecture, channels)


def frequencies(parameters, channels, context=131072):
    config = LlamaConfig(head_dim=channels, max_position_embeddings=context, rope_parameters=dict(parameters))
    inverse, attention = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))
    return inverse.numpy(), attention


def yarn(spec, **values):
    return spec.set(rope__scaling__type="yarn", rope__scaling__factor=4.0, **values)


def test_yarn_keeps_every_setting(llama, tmp_path):
    keys = {
        "rope__scaling__original_context_length": 64,
        "rope__scaling__yarn_beta_fast": 24.0,
        "rope__scaling__yarn_beta_slow": 2.0,
    }
    assert read(yarn(llama, **keys), tmp_path) == {
        "rope_theta": 5000.0,
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
    }


def test_a_magnitude_of_yarn_is_absolute_in_config_json(llama, tmp_path):
    multiplied = read(yarn(llama, rope__scaling__attn_factor=2.0), tmp_path)
    assert multiplied["attention_factor"] == pytest.approx(2 * (1 + 0.1 * math.log(4)))
    plain = frequencies(multiplied | {"attention_factor": None}, 16)[1]
    assert multiplied["attention_factor"] == pytest.approx(2 * plain)
    llama.metadata.pop("llama.rope.scaling.attn_factor")
    assert read(llama.set(rope__scaling__yarn_attn_factor=1.5), tmp_path)["attention_factor"] == 1.5


@pytest.mark.parametrize("key", ["rope__scaling__factor", "rope__scale_linear"])
def test_a_factor_without_a_type_is_linear(llama, tmp_path, key):
    assert read(llama.set(**{key: 8.0}), tmp_path) == {"rope_theta": 5000.0, "rope_type": "linear", "factor": 8.0}


@pytest.mark.parametrize("keys", [{"rope__scaling__factor": 0.0}, {"rope__scaling__type": "none"}, {}])
def test_no_scaling_is_the_default(llama, tmp_path, keys):
    assert read(llama.set(**keys), tmp_path) == {"rope_theta": 5000.0, "rope_type": "default"}


def test_without_a_base_it_is_that_of_llama_cpp(llama, tmp_path):
    del llama.metadata["llama.rope.freq_base"]
    assert read(llama, tmp_path)["rope_theta"] == 10000.0


LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(("factor", "original", "channels"), [(8.0, 8192, 128), (32.0, 8192, 64), (8.0, 6000, 128)])
def test_the_factors_of_llama_3_become_its_parameters(llama, tmp_path, factor, original, channels):
    expected = LLAMA3 | {"factor": factor, "original_max_position_embeddings": original}
    plain = frequencies({"rope_type": "linear", "rope_theta": 500000.0, "factor": 1.0}, channels)[0]
    llama.tensors["rope_freqs.weight"] = (plain / frequencies(expected, channels)[0]).astype(np.float32)
    assert read(llama.set(rope__freq_base=500000.0), tmp_path, channels) == expected


def test_unusual_factors_of_the_same_form_keep_their_frequencies(llama, tmp_path):
    values = np.array([1, 1, 1, 1, 2.5, 8, 8, 8], np.float32)
    llama.tensors["rope_freqs.weight"] = values
    found = read(llama.set(rope__freq_base=500000.0), tmp_path)
    plain = frequencies({"rope_type": "linear", "rope_theta": 500000.0, "factor": 1.0}, 16)[0]
    assert np.allclose(plain / frequencies(found, 16)[0], values, rtol=1e-4)


@pytest.mark.parametrize(("value", "kind"), [(1.0, "default"), (4.0, "linear")])
def test_equal_factors_are_no_or_linear_scaling(value, kind):
    assert factors_scaling(None, np.full(8, value, np.float32), 10000.0)["rope_type"] == kind


def test_long_rope_of_phi_3_keeps_both_lists(make_spec, tmp_path):
    _, spec = make_spec("phi3")
    long, short = np.linspace(1, 9, 8, dtype=np.float32), np.linspace(1, 2, 8, dtype=np.float32)
    spec.tensors |= {"rope_factors_long.weight": long, "rope_factors_short.weight": short}
    usual = math.sqrt(1 + math.log(4) / math.log(64))
    spec.set(rope__scaling__original_context_length=64, rope__scaling__attn_factor=usual)
    found = read(spec, tmp_path)
    assert found["rope_type"] == "longrope" and "attention_factor" not in found
    assert (found["long_factor"], found["short_factor"]) == (long.tolist(), short.tolist())
    Phi3Config(rope_parameters=found | {"partial_rotary_factor": 1.0}, hidden_size=64, num_attention_heads=4)
    assert read(spec.set(rope__scaling__attn_factor=2.0), tmp_path)["attention_factor"] == 2.0


REFUSED = {
    "an unknown type": (lambda spec: spec.set(rope__scaling__type="ntk"), "scaling.type is 'ntk', not none, linear"),
    "long rope without factors": (
        lambda spec: spec.set(rope__scaling__type="longrope"),
        "rope_factors_long.weight is mis",
    ),
    "factors and yarn": (
        lambda spec: yarn(spec).tensors.update({"rope_freqs.weight": np.ones(8, np.float32)}),
        "has both rope_freqs.weight and llama.rope.scaling.type yarn",
    ),
    "factors of no known form": (
        lambda spec: spec.tensors.update({"rope_freqs.weight": np.arange(1, 9, dtype=np.float32)}),
        "rope_freqs.weight is not the scaling of Llama 3",
    ),
    "factors of another length": (
        lambda spec: spec.tensors.update({"rope_freqs.weight": np.ones(4, np.float32)}),
        "rope_freqs.weight has shape (4,), but 16 rotated channels need (8,)",
    ),
    "a factor that is not a number": (
        lambda spec: spec.tensors.update({"rope_freqs.weight": np.full(8, np.nan, np.float32)}),
        "rope_freqs.weight has a factor that is not above 0",
    ),
    "long factors of a llama": (
        lambda spec: spec.tensors.update({"rope_factors_long.weight": np.ones(8, np.float32)}),
        "has rope_factors_long.weight, but llama with none scaling does not use it",
    ),
    "a base that is not a number": (lambda spec: spec.set(rope__freq_base=math.nan), "freq_base is nan, not a number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_scaling_without_a_place_in_config_json_is_refused(llama, tmp_path, name):
    change, words = REFUSED[name]
    change(llama)
    with pytest.raises(QCompressError) as error:
        read(llama, tmp_path)
    assert words in error.value.message

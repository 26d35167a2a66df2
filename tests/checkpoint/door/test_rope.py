"""Rope settings have one meaning: contradictions are refused, and both spellings are written alike."""

import copy

import pytest
from transformers import AutoConfig

from compress.checkpoint.door.rope import REQUIRED, rope_faults
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.write import both_spellings
from compress.model.blocks import make_config
from tests.checkpoint.door.conftest import edit_config

DEFAULT = {"rope_type": "default", "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
LINEAR = {"type": "linear", "factor": 4.0}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}
NESTED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
BASE = {"model_type": "llama", "max_position_embeddings": 1024}
CONTRADICTIONS = [
    {"rope_parameters": DEFAULT | {"rope_theta": 1e6}, "rope_scaling": YARN},
    {"rope_parameters": DEFAULT, "rope_theta": 5e5},
    {"rope_parameters": DEFAULT, "rope_scaling": LINEAR},
    {"rope_parameters": YARN | {"rope_theta": 1e4}, "rope_scaling": None},
    {"rope_parameters": YARN | {"rope_theta": 1e4}, "rope_scaling": YARN | {"factor": 8.0}},
    {"rope_parameters": YARN | {"rope_theta": 1e4}, "rope_scaling": YARN | {"rope_theta": 1e6}},
    {"rope_scaling": LINEAR | {"rope_type": "dynamic"}},
    {"rope_scaling": LINEAR | {"rope_theta": 1e6}, "rope_theta": 1e4},
    {"rope_parameters": DEFAULT | {"partial_rotary_factor": 0.5}, "partial_rotary_factor": 1.0},
    {"model_type": "gemma3_text", "rope_parameters": NESTED, "rope_theta": 1e4},
    {"model_type": "gemma3_text", "rope_parameters": NESTED, "rope_local_base_freq": 1e6},
    {"model_type": "gemma3_text", "rope_parameters": NESTED, "rope_scaling": LINEAR},
]
UNUSABLE = [
    {"rope_scaling": {"type": "superntk", "factor": 2.0}},
    {"rope_scaling": {"type": None}},
    {"rope_parameters": {"rope_type": None, "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": ["linear"], "rope_theta": 1e4}},
    {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    {"rope_scaling": {"type": "linear"}},
    {"rope_scaling": {"type": "linear", "factor": "4"}},
    {"rope_scaling": {"type": "linear", "factor": True}},
    {"rope_scaling": {"type": "linear", "factor": 0}},
    {"rope_scaling": "linear"},
    {"rope_scaling": [4.0]},
    {"rope_parameters": "default"},
    {"rope_parameters": DEFAULT | {"rope_theta": "1e4"}},
    {"rope_parameters": DEFAULT | {"rope_theta": -1.0}},
    {"rope_theta": 0},
    {"rope_theta": True},
]
HEALTHY = [
    {},
    {"rope_theta": 1e5, "rope_scaling": None},
    {"rope_parameters": DEFAULT},
    {"rope_parameters": DEFAULT, "rope_theta": 10000, "rope_scaling": None},
    {"rope_scaling": LINEAR},
    {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"rope_type": "llama3", "factor": 32.0}},
    {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}},
    {"rope_parameters": YARN | {"rope_theta": 1e6}, "rope_theta": 1e6, "rope_scaling": YARN},
    {"rope_parameters": YARN | {"rope_theta": 1e6}},
    {"model_type": "gemma3_text", "rope_parameters": NESTED},
    {"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None},
    {"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
]


@pytest.mark.parametrize("values", [*CONTRADICTIONS, *UNUSABLE], ids=str)
def test_contradicting_or_unusable_rope_settings_are_refused(model, refused, values):
    assert list(rope_faults(BASE | values)) or "rope_theta" in values
    edit_config(model, **(dict.fromkeys(("rope_parameters", "rope_theta", "rope_scaling"), ...) | values))
    refused(model, "config.json", "rope")


@pytest.mark.parametrize("values", HEALTHY, ids=str)
def test_usual_rope_settings_pass_and_are_written_in_both_spellings(values):
    config = BASE | copy.deepcopy(values)
    before = copy.deepcopy(config)
    assert not list(rope_faults(config))
    resolved = make_config(config).rope_parameters
    assert config == before
    written = both_spellings(config)
    assert make_config(written).rope_parameters == resolved and written["rope_parameters"] == resolved
    assert not list(rope_faults(written)) and both_spellings(written) == written and config == before


def test_the_old_spelling_of_gemma_3_keeps_its_scaling():
    written = both_spellings({"model_type": "gemma3_text", "rope_parameters": NESTED})
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert written["rope_theta"] == 1e6 and written["rope_local_base_freq"] == 1e4
    old_only = {key: value for key, value in written.items() if key != "rope_parameters"}
    assert make_config(old_only).rope_parameters == NESTED


def test_phi3_has_the_three_old_keys_that_transformers_4_accepts():
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 1024}
    config = {"model_type": "phi3", **sizes, "original_max_position_embeddings": 256}
    written = both_spellings(config | {"rope_parameters": factors | {"rope_type": "longrope", "rope_theta": 1e4}})
    assert written["rope_scaling"] == {"type": "longrope"} | factors


def test_the_known_rope_types_are_those_of_transformers():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert set(REQUIRED) == {"default", *ROPE_INIT_FUNCTIONS}


def test_the_default_of_a_model_type_is_what_transformers_uses():
    written = both_spellings({"model_type": "llama"})
    assert written["rope_theta"] == AutoConfig.for_model("llama").rope_parameters["rope_theta"]


def test_a_written_checkpoint_passes_the_door(model):
    edit_config(model, **both_spellings(open_causal_lm(model).config))
    assert open_causal_lm(model)

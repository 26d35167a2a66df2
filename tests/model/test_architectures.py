"""The table of architectures equals the models that transformers builds, and covers only configs that it accepts."""

import copy
import json

import pytest

from compress.model.architectures import ARCHITECTURES, SLIDING, find_architecture, sizes_of
from compress.model.blocks import make_config, skeleton_shapes
from compress.model.families import FAMILIES
from compress.model.shapes import block_lists, model_shapes, sliding_window, table_shapes

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "pad_token_id": 0,
}
CHANGES = {
    "plain": {},
    "other heads": {"num_attention_heads": 8, "num_key_value_heads": 8},
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "sliding": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3},
    "other period": {"sliding_window_pattern": 3, "no_rope_layer_interval": 3},
    "quantized": {"quantization_config": {"quant_method": "awq"}},
}
LEFT_OUT = ("num_key_value_heads", "head_dim")
FAMILIAR_WITHOUT = {  # (key, whether it is missing, else null) -> model types that the table reads without the key
    ("num_key_value_heads", True): {"llama", "granite", "phi3"},
    ("num_key_value_heads", False): {"llama", "granite", "phi3"},
    ("head_dim", True): {"llama", "granite", "smollm3", "mistral", "qwen2", "phi3"},
    ("head_dim", False): {"llama", "mistral"},
}


def config_of(model_type: str, **changes: object) -> dict:
    return {"model_type": model_type, "architectures": [ARCHITECTURES[model_type].name], **SIZES, **changes}


def assert_equal_to_transformers(config: dict) -> None:
    """The table has the names, shapes, order and lists of transformers."""
    row = find_architecture(config)
    assert row is not None
    ours, theirs = table_shapes(config, row), skeleton_shapes(config)
    assert ours == theirs and list(ours.parameters) == list(theirs.parameters)
    assert list(ours.linears) == list(theirs.linears)
    full = make_config(config)
    lists = {name: getattr(full, name, None) for name in ("layer_types", "no_rope_layers")}
    lists = {name: entries for name, entries in lists.items() if entries is not None}
    assert block_lists(config) == lists
    if SLIDING in lists.get("layer_types", [SLIDING]):
        assert sliding_window(config) == getattr(full, "sliding_window", None)


def test_every_architecture_is_in_the_table_of_families():
    assert {name for family in FAMILIES for name in family.model_types} >= ARCHITECTURES.keys()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_table_equals_the_model_of_transformers(model_type, change):
    assert_equal_to_transformers(config_of(model_type, **CHANGES[change]))


@pytest.mark.parametrize(("key", "missing"), FAMILIAR_WITHOUT)
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_size_that_is_left_out_is_that_of_transformers(model_type, key, missing):
    config = config_of(model_type, **{key: None})
    if missing:
        del config[key]
    assert (find_architecture(config) is not None) == (model_type in FAMILIAR_WITHOUT[key, missing])
    if model_type in FAMILIAR_WITHOUT[key, missing]:
        assert_equal_to_transformers(config)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_config_that_transformers_saves_is_familiar(model_type):
    saved = json.loads(json.dumps(make_config(config_of(model_type)).to_dict() | {"dtype": "float16"}))
    assert_equal_to_transformers(saved | {"architectures": [ARCHITECTURES[model_type].name]})


@pytest.mark.parametrize("file", ["qwen2.5-7b-instruct", "qwen2.5-1.5b-instruct"])
def test_the_configs_of_the_recipes_are_familiar(file, request):
    config = json.loads((request.config.rootpath / f"recipes/configs/{file}.json").read_text())
    assert find_architecture(config) and sizes_of(config)["head"] == 128


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_the_rope_of_llama_3_is_familiar_for_llama_alone():
    config = config_of("llama", rope_scaling=dict(LLAMA3), rope_theta=500000.0, max_position_embeddings=131072)
    assert_equal_to_transformers(config)
    for model_type in ARCHITECTURES.keys() - {"llama"}:
        assert find_architecture(config | config_of(model_type)) is None, model_type


UNFAMILIAR = {
    "an unknown type": {"model_type": "gpt2"},
    "another class": {"architectures": ["LlamaModel"]},
    "an unknown key": {"num_experts": 4},
    "a size as text": {"hidden_size": "32"},
    "a size of zero": {"intermediate_size": 0},
    "a million blocks": {"num_hidden_layers": 10**6},
    "a size as a boolean": {"num_hidden_layers": True},
    "heads that do not divide the width": {"num_attention_heads": 5, "num_key_value_heads": 5},
    "key-value heads that do not divide the heads": {"num_key_value_heads": 3},
    "an odd head": {"head_dim": 7},
    "an unknown activation": {"hidden_act": "tanhshrinky"},
    "an epsilon as a whole number": {"rms_norm_eps": 1},
    "an incomplete llama3 rope": {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    "a pad token beyond the vocabulary": {"pad_token_id": 64},
    "too few layer types": {"layer_types": ["full_attention"]},
    "sliding attention without a window": {"layer_types": ["sliding_attention"] * 7, "sliding_window": None},
    "a bias as a number": {"attention_bias": 1},
    "labels that are no numbers": {"id2label": {"a": "b"}},
}


@pytest.mark.parametrize("change", UNFAMILIAR)
def test_other_values_are_left_to_transformers(change):
    assert find_architecture(config_of("llama")) is not None
    assert find_architecture(config_of("llama") | UNFAMILIAR[change]) is None


@pytest.mark.parametrize("key", sorted(SIZES.keys() - {*LEFT_OUT, "pad_token_id"}))
def test_a_missing_size_is_left_to_transformers(key):
    config = config_of("llama")
    del config[key]
    assert find_architecture(config) is None


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_lists_and_windows_do_not_depend_on_the_table(model_type):
    config = config_of(model_type, **CHANGES["sliding"])
    for values in (config, {key: value for key, value in config.items() if key != "sliding_window"}):
        unfamiliar = values | {"some_new_key": 1}
        assert find_architecture(unfamiliar) is None and block_lists(values) == block_lists(unfamiliar)
        if SLIDING in block_lists(values).get("layer_types", [SLIDING]):
            assert sliding_window(values) == sliding_window(unfamiliar)


def test_an_unfamiliar_config_is_built_by_transformers():
    config = config_of("llama", some_new_key=1)
    before = copy.deepcopy(config)
    assert model_shapes(config) == table_shapes(config_of("llama"), ARCHITECTURES["llama"]) and config == before

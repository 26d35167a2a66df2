"""Values of config.json that transformers cannot use are refused in one line that names the key."""

import pytest

from compress.checkpoint.door.rules import settings_faults
from compress.checkpoint.load import open_causal_lm
from tests.checkpoint.door.conftest import edit_config

NAN = float("nan")
BAD = [
    ("torch_dtype", "auto"),
    ("dtype", "auto"),
    ("torch_dtype", "torch.bfloat16"),
    ("dtype", "no_such"),
    ("dtype", 16),
    ("torch_dtype", "bfloat16"),  # dtype says float16
    ("hidden_act", "xielu2"),
    ("hidden_act", 3),
    ("quantization_config", []),
    ("quantization_config", "awq"),
    ("quantization_config", False),
    ("quantization_config", 0),
    ("model_type", ["llama"]),
    ("model_type", "no_such_model"),
    ("architectures", [1]),
    ("architectures", "LlamaForCausalLM"),
    ("architectures", ["LlamaForSequenceClassification"]),
    ("text_config", "small"),
    ("text_config", {"hidden_size": -1}),
    ("num_hidden_layers", 0),
    ("num_hidden_layers", -2),
    ("num_hidden_layers", True),
    ("num_hidden_layers", 2.0),
    ("num_hidden_layers", 10**9),
    ("num_hidden_layers", 10**100),
    ("vocab_size", 10**9),
    ("vocab_size", -128),
    ("vocab_size", 127),
    ("vocab_size", "128"),
    ("hidden_size", 0),
    ("hidden_size", 10**12),
    ("hidden_size", 32),
    ("intermediate_size", 10**9),
    ("intermediate_size", 64),
    ("num_attention_heads", 0),
    ("num_attention_heads", True),
    ("num_attention_heads", 10**9),
    ("num_key_value_heads", 0),
    ("num_key_value_heads", 3),
    ("head_dim", 10**12),
    ("head_dim", -16),
    ("max_position_embeddings", -1),
    ("pad_token_id", 128),
    ("pad_token_id", 10**10),
    ("pad_token_id", "0"),
    ("eos_token_id", [1, "2"]),
    ("bos_token_id", True),
    ("rms_norm_eps", NAN),
    ("rms_norm_eps", float("inf")),
    ("rms_norm_eps", "1e-6"),
    ("rms_norm_eps", -1.0),
    ("rms_norm_eps", {"__float__": "NaN"}),
    ("initializer_range", {"__float__": "Infinity"}),
    ("anything", {"deep": [1.0, NAN]}),
    ("attention_bias", "false"),
    ("tie_word_embeddings", "true"),
    ("tie_word_embeddings", 1),
    ("attention_dropout", 2.0),
    ("layer_types", "full_attention"),
    ("layer_types", ["full_attention"]),
]


@pytest.mark.parametrize(("key", "value"), BAD, ids=[f"{key}={value!r:.30}" for key, value in BAD])
def test_an_unusable_value_is_refused(model, refused, key, value):
    edit_config(model, **{key: value})
    refused(model, "config.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pad_token_id", -1),
        ("pad_token_id", None),
        ("eos_token_id", [1, 2]),
        ("sliding_window", None),
        ("quantization_config", None),
        ("unknown_key", {"a": [1, 2.5, None, "b"]}),
        ("hidden_act", "gelu"),
        ("torch_dtype", "float16"),
        ("max_position_embeddings", 10_485_760),
        ("dtype", "float16"),
    ],
)
def test_usual_values_pass(model, key, value):
    edit_config(model, **{key: value})
    assert open_causal_lm(model)


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", 5000), ("vocab_size", 10**10)])
def test_a_config_without_weights_is_bounded_too(key, value):
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128}
    assert not list(settings_faults(config)) and list(settings_faults(config | {key: value}))

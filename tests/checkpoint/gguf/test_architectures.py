"""A model that is written as its converter writes it and imported again computes the same logits."""

import pytest
import torch

from compress.checkpoint.gguf.architectures import ARCHITECTURES
from compress.checkpoint.gguf.importer import import_gguf
from compress.checkpoint.load import load_model

THETA = {"rope_type": "default", "rope_theta": 5000.0}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
}
BIASES = {"attention_bias": True, "mlp_bias": True}
LONG = [1.0 + 0.5 * index for index in range(8)]
CASES = {
    "llama": (
        BIASES | {"rope_parameters": THETA, "head_dim": 24},
        {"rope__freq_base": 5000.0, "attention__key_length": 24},
    ),
    "llama without keys of rope": ({"rope_parameters": THETA | {"rope_theta": 10000.0}}, {}),
    "llama with linear scaling": (
        {"rope_parameters": THETA | {"rope_type": "linear", "factor": 4.0}},
        {"rope__freq_base": 5000.0, "rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
    ),
    "llama with the older key of scaling": (
        {"rope_parameters": THETA | {"rope_type": "linear", "factor": 4.0}},
        {"rope__freq_base": 5000.0, "rope__scale_linear": 4.0},
    ),
    "qwen2 with yarn": (
        {"rope_parameters": THETA | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
        {
            "rope__freq_base": 5000.0,
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 4.0,
            "rope__scaling__original_context_length": 64,
        },
    ),
    "qwen3": (
        {"rope_parameters": THETA, "head_dim": 32},
        {"rope__freq_base": 5000.0, "attention__key_length": 32, "attention__value_length": 32},
    ),
    "gemma": (
        {"rope_parameters": THETA, "head_dim": 32, "tie_word_embeddings": True},
        {"rope__freq_base": 5000.0, "attention__key_length": 32},
    ),
    "gemma2": (
        {
            "rope_parameters": THETA,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 10.0,
            "tie_word_embeddings": True,
        },
        {
            "rope__freq_base": 5000.0,
            "attention__key_length": 32,
            "attention__sliding_window": 8,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 10.0,
        },
    ),
    "gemma3": (
        {
            "rope_parameters": GEMMA3_ROPE,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "final_logit_softcapping": 10.0,
            "tie_word_embeddings": True,
        },
        {
            "rope__freq_base": 5000.0,
            "rope__freq_base_swa": 700.0,
            "rope__scaling__type": "linear",
            "rope__scaling__factor": 8.0,
            "attention__key_length": 32,
            "attention__sliding_window": 8,
            "attention__sliding_window_pattern": 2,
            "final_logit_softcapping": 10.0,
        },
    ),
    "phi3": (
        {"rope_parameters": THETA | {"partial_rotary_factor": 0.5}, "sliding_window": 8},
        {"rope__freq_base": 5000.0, "rope__dimension_count": 8, "attention__sliding_window": 8},
    ),
    "granite": (
        {
            "rope_parameters": THETA,
            "attention_multiplier": 0.1,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
        {
            "rope__freq_base": 5000.0,
            "attention__scale": 0.1,
            "embedding_scale": 3.0,
            "residual_scale": 0.5,
            "logit_scale": 2.0,
        },
    ),
    "granite without scales": ({"rope_parameters": THETA, "attention_multiplier": 0.25}, {"rope__freq_base": 5000.0}),
    "smollm3": ({"rope_parameters": THETA, "num_hidden_layers": 4}, {"rope__freq_base": 5000.0}),
    "olmo2": ({"rope_parameters": THETA}, {"rope__freq_base": 5000.0}),
    "lfm2": (
        {
            "rope_parameters": THETA,
            "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
            "conv_L_cache": 4,
        },
        {"rope__freq_base": 5000.0, "shortconv__l_cache": 4, "attention__head_count_kv": [0, 2]},
    ),
    "starcoder2": ({"rope_parameters": THETA}, {"rope__freq_base": 5000.0}),
    "stablelm": (
        {"rope_parameters": THETA | {"partial_rotary_factor": 0.25}, "use_qkv_bias": True},
        {"rope__freq_base": 5000.0, "rope__dimension_count": 4, "use_parallel_residual": False},
    ),
    "nemotron": (
        {"rope_parameters": THETA | {"partial_rotary_factor": 0.5}},
        {"rope__freq_base": 5000.0, "rope__dimension_count": 8},
    ),
}


def test_every_architecture_has_a_round_trip():
    assert {name.split()[0] for name in CASES} == set(ARCHITECTURES)


def logits(model):
    ids = torch.arange(48)[None] * 7 % 128
    with torch.no_grad():
        return model(ids, use_cache=False).logits


@pytest.mark.parametrize("name", CASES)
def test_an_imported_model_computes_the_logits_of_the_original(make_spec, tiny_llama, tmp_path, name):
    settings, keys = CASES[name]
    model, spec = make_spec(name.split()[0], **settings)
    file = spec.set(**keys).write(tmp_path / "model.gguf")
    reference = tiny_llama if name == "gemma3" else None  # its tokenizer cannot be built
    import_gguf(file, tmp_path / "out", tokenizer=reference)
    imported = load_model(tmp_path / "out")
    for (path, ours), (_, theirs) in zip(imported.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), path
    assert torch.allclose(logits(imported), logits(model), rtol=0, atol=1e-4)

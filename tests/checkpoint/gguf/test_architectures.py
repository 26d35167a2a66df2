"""A model that is written as its converter writes it and imported again computes the same logits."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from compress.checkpoint.gguf.architectures import ARCHITECTURES
from compress.checkpoint.gguf.importer import import_gguf
from compress.checkpoint.load import load_model
from compress.core.errors import QCompressError

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
        {"rope_parameters": THETA | {"partial_rotary_factor": 0.75}, "use_qkv_bias": True},
        {"rope__freq_base": 5000.0, "rope__dimension_count": 12, "use_parallel_residual": False},
    ),
    "nemotron": (
        {"rope_parameters": THETA | {"partial_rotary_factor": 0.5}},
        {"rope__freq_base": 5000.0, "rope__dimension_count": 8},
    ),
}


QWEN35 = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_value_head_dim": 4,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5000.0,
        "mrope_section": [2, 2, 2],
        "mrope_interleaved": True,
        "partial_rotary_factor": 0.75,
    },
}
QWEN35_KEYS = {
    "rope__freq_base": 5000.0,
    "rope__dimension_count": 12,
    "rope__dimension_sections": [2, 2, 2, 0],
    "attention__key_length": 16,
    "attention__value_length": 16,
    "full_attention_interval": 4,
    "ssm__conv_kernel": 3,
    "ssm__state_size": 8,
    "ssm__group_count": 2,
    "ssm__time_step_rank": 6,
    "ssm__inner_size": 24,
}


def test_every_architecture_has_a_round_trip():
    assert {*(name.split()[0] for name in CASES), "qwen35"} == set(ARCHITECTURES)


@pytest.mark.parametrize("further", [0, 1])
def test_qwen_3_5_has_the_weights_that_transformers_reads(make_spec, tmp_path, further):
    _, spec = make_spec("qwen35", **QWEN35)
    generator = np.random.default_rng(1)
    for name, values in spec.tensors.items():  # as the file stores them, whatever the order
        spec.tensors[name] = generator.uniform(-3, -0.1 if name.endswith("ssm_a") else 3, values.shape).astype(
            np.float32
        )
    if further:
        spec.tensors["blk.4.nextn.eh_proj.weight"] = np.ones((64, 128), np.float32)
        spec.set(block_count=5, nextn_predict_layers=1)
    file = spec.set(**QWEN35_KEYS).write(tmp_path / "model.gguf")
    row = import_gguf(file, tmp_path / "out", dtype=torch.float32)
    imported = load_model(tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    expected = dict(theirs.named_parameters())
    for path, ours in imported.named_parameters():
        assert torch.allclose(ours, expected[path], rtol=1e-5, atol=1e-6), path
    assert torch.allclose(logits(imported), logits(theirs), rtol=1e-3, atol=1e-3)
    assert ("left_out" in row) is bool(further)


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


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"ssm__inner_size": 25}, "the sizes in qwen35.ssm.*, or nextn_predict_layers and block_count, contradict"),
        ({"ssm__state_size": 2**31}, "qwen35.ssm.state_size is "),
        ({"nextn_predict_layers": 9}, "nextn_predict_layers and block_count, contradict each other"),
        ({"rope__dimension_sections": 3}, "qwen35.rope.dimension_sections is 3, not a list"),
    ],
)
def test_sizes_of_linear_attention_that_do_not_fit_are_refused(make_spec, tmp_path, keys, words):
    _, spec = make_spec("qwen35", **QWEN35)
    file = spec.set(**QWEN35_KEYS | keys).write(tmp_path / "model.gguf")
    with pytest.raises(QCompressError) as error:
        import_gguf(file, tmp_path / "out")
    assert words in error.value.message

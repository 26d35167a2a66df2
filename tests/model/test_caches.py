"""Caches of hybrids and of latent attention, by hand and against the caches that transformers fills."""

import pytest
import torch

from compress.model.caches import BlockCache, full_config, other_caches
from scripts.tiny_models import save_tiny, tiny_config

KEYS = BlockCache(2 * 2 * 32 * 2)  # 2 KV heads of 32 channels in 16 bits
DELTA = BlockCache(0, fixed=3 * (2 * 2 * 16 + 4 * 16) * 2 + 4 * 16 * 16 * 4)
MAMBA = BlockCache(0, fixed=3 * (128 + 2 * 16) * 2 + 128 * 16 * 4)
EXPECTED = {
    "qwen3_5_text": [DELTA, DELTA, DELTA, KEYS],
    "granitemoehybrid": [MAMBA, KEYS],
    "falcon_h1": [KEYS._replace(fixed=MAMBA.fixed)] * 2,
    "nemotron_h": [MAMBA, KEYS, BlockCache(0)],
    "lfm2": [BlockCache(0, fixed=2 * 64 * 2), KEYS],
    "deepseek_v3": [BlockCache((32 + 16) * 2)] * 2,
    "llama": None,
}


@pytest.mark.parametrize("model_type", EXPECTED)
def test_every_block_has_the_cache_of_its_kind(model_type):
    config = full_config(tiny_config(model_type).to_dict())
    assert other_caches(config, 2, KEYS.bytes) == EXPECTED[model_type]


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["qwen3_5_text", "granitemoehybrid", "falcon_h1"])
def test_states_are_as_large_as_those_of_transformers(model_type, tmp_path):
    model = save_tiny(model_type, tmp_path / "model", dtype=torch.float32)
    layer = model(torch.arange(8, 24)[None], use_cache=True).past_key_values.layers[0]
    fixed = EXPECTED[model_type][0].fixed
    kernel = layer.conv_states[0].shape[-1]
    convolution = layer.conv_states[0].numel() // kernel * 3 * 2
    assert convolution + layer.recurrent_states[0].numel() * 4 == fixed

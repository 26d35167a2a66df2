"""Dtypes of the KV cache: bytes per token, several GPUs, and the hardware that supports them."""

from pathlib import Path

import pytest

from compress.checkpoint.read import read_json
from compress.core.config import KV_DTYPES
from compress.evaluate.speed.capacity import predict, read_footprint
from compress.evaluate.speed.hardware import find_hardware
from compress.evaluate.speed.kv_cache import head_bytes, kv_blocks_of, unsupported_dtype

CONFIGS = Path(__file__).parents[3] / "recipes" / "configs"
SMALL = read_json(CONFIGS / "qwen2.5-1.5b-instruct.json")  # 2 KV heads of 128 channels, bfloat16
STUDENT = read_json(CONFIGS / "seed-student.json")  # heads of 160 channels


@pytest.mark.parametrize(
    ("dtype", "size"), [("auto", 256), ("fp8", 128), ("int8_per_token_head", 132), ("int4_per_token_head", 68)]
)
def test_a_quantized_head_has_its_numbers_and_one_float32_scale(dtype, size):
    assert dtype in KV_DTYPES and head_bytes(SMALL, dtype) == size
    assert {block.bytes for block in kv_blocks_of(SMALL, dtype)} == {2 * 2 * size}


def test_more_gpus_than_kv_heads_hold_copies():
    one, two, four = (kv_blocks_of(SMALL, gpus=gpus)[0].bytes for gpus in (1, 2, 4))
    assert one == two and four == 2 * one


@pytest.mark.parametrize(
    ("dtype", "config", "capability", "reason"),
    [
        ("fp8", SMALL, 75, "needs compute capability 8.0"),
        ("fp8", SMALL, 87, None),
        ("fp8", STUDENT, 87, "head size 160 needs compute capability 8.9"),
        ("fp8", STUDENT, 89, None),
        ("fp8", STUDENT, None, None),
        ("int8_per_token_head", STUDENT, 75, None),
        ("int4_per_token_head", STUDENT, 90, "needs a head size that is a power of 2, and this model's is 160"),
        ("int4_per_token_head", SMALL, 75, None),
    ],
)
def test_hardware_and_head_size_decide(dtype, config, capability, reason):
    result = unsupported_dtype(dtype, config, capability)
    assert result is None if reason is None else reason in result


def test_a_prediction_with_an_unsupported_dtype_does_not_fit():
    model, (t4, orin) = read_footprint(CONFIGS / "qwen2.5-1.5b-instruct.json"), find_hardware(("t4", "orin-nano"))
    row = predict(model, t4, 1024, 512, 0, "fp8")
    assert not row["fits"] and "compute capability 8.0" in row["reason"] and row["longest_context"] == 0
    half, whole = (predict(model, orin, 1024, 512, 0, dtype) for dtype in ("fp8", "auto"))
    assert half["fits"] and half["kv_cache_dtype"] == "fp8"
    assert 2 * half["kv_bytes_per_request"] == whole["kv_bytes_per_request"]
    assert half["decode_tokens_per_s_estimate"] > whole["decode_tokens_per_s_estimate"]


def test_several_gpus_add_memory_and_bandwidth_and_repeat_the_overhead():
    model = read_footprint(CONFIGS / "qwen2.5-7b-instruct.json")
    one, four = (predict(model, place, 1024, 512, 0) for place in find_hardware(("rtx-4090", "4x-rtx-4090d")))
    for key, times in (("usable_bytes", 4), ("overhead_bytes", 4), ("kv_bytes_per_request", 1), ("gpus", 4)):
        assert four[key] == times * one[key], key
    ratio = four["decode_tokens_per_s_estimate"] / one["decode_tokens_per_s_estimate"]
    assert ratio == pytest.approx(4)

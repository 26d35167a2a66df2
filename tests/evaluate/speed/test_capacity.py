"""Predicted sizes of KV caches and what fits where: pinned configs, sliding windows, hardware, bad input."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.evaluate.speed.capacity import packed_footprint, predict, predict_rows, read_footprint, read_footprints
from compress.evaluate.speed.hardware import GIB, HARDWARE, find_hardware, kernel_of, memory_only
from compress.evaluate.speed.kv_cache import KvBlock, kv_blocks_of, kv_bytes, longest_within, windows_of

CONFIGS = Path(__file__).parents[3] / "recipes" / "configs"
T4, ORIN = find_hardware(("t4", "orin-nano"))
PACKED = {"quantization_config": {"quant_method": "awq"}}


@pytest.mark.parametrize(
    ("name", "size"),
    [("qwen2.5-7b-instruct", 57_344), ("qwen2.5-1.5b-instruct", 28_672), ("seed-student", 51_200)],
)
def test_the_kv_cache_of_real_configs_is_pinned(name, size):
    assert read_footprint(CONFIGS / f"{name}.json").kv_bytes_per_token == size


def test_head_dim_counts_and_missing_kv_heads_mean_all_heads():
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
    assert sum(block.bytes for block in kv_blocks_of(config)) == 3 * 2 * 4 * 16 * 2
    assert sum(block.bytes for block in kv_blocks_of(config | {"head_dim": 128})) == 3 * 2 * 4 * 128 * 2
    assert kv_blocks_of(config | {"dtype": "float32"}) == kv_blocks_of(config)


@pytest.mark.parametrize(
    ("extra", "windows"),
    [
        ({"model_type": "qwen2", "use_sliding_window": False}, [None] * 6),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 4}, [None] * 4 + [8] * 2),
        ({"model_type": "gemma2"}, [8, None] * 3),
        ({"model_type": "gemma3_text"}, [8] * 5 + [None]),
        ({"model_type": "qwen2", "use_sliding_window": True, "num_hidden_layers": 30}, [None] * 28 + [8] * 2),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": None}, [None] * 6),
        ({"model_type": "smollm3", "use_sliding_window": True}, [None] * 3 + [8] + [None] * 2),
        ({"model_type": "smollm3", "use_sliding_window": False}, [None] * 6),
        ({"model_type": "mistral"}, [8] * 6),
        ({"model_type": "phi3"}, [8] * 6),
        ({"model_type": "any", "layer_types": ["full_attention", "sliding_attention"] * 3}, [None, 8] * 3),
    ],
)
def test_the_config_decides_which_blocks_have_a_window(extra, windows):
    assert windows_of({"num_hidden_layers": 6, "sliding_window": 8} | extra) == windows


@pytest.mark.parametrize(("model_type", "windows"), [("mistral", [4096] * 2), ("gemma2", [4096, None])])
def test_a_missing_window_is_the_default_of_the_model_type(model_type, windows):
    assert windows_of({"model_type": model_type, "num_hidden_layers": 2}) == windows


def test_a_full_window_stops_growing_and_pages_are_whole():
    blocks = (KvBlock(10), KvBlock(10, window=32))
    assert kv_bytes(blocks, 17) == 2 * 320
    assert kv_bytes(blocks, 64) == 640 + 320
    assert kv_bytes(blocks, 640) - kv_bytes(blocks, 320) == 3200


@pytest.mark.parametrize("room", [0, 159, 160, 161, 5000])
def test_the_longest_context_fits_and_one_more_does_not(room):
    blocks, limit = (KvBlock(10), KvBlock(10, window=32)), 200
    longest = longest_within(blocks, room, limit)
    assert kv_bytes(blocks, longest) <= room
    assert longest == limit or kv_bytes(blocks, longest + 1) > room


def test_a_state_does_not_grow_with_the_request():
    blocks = (KvBlock(10), KvBlock(0, fixed=7))
    assert kv_bytes(blocks, 16) == 160 + 7 and kv_bytes(blocks, 160) == 1600 + 7


@pytest.mark.parametrize("config", [{"state_size": 16}, {"layer_types": ["linear_attention"], "hidden_size": 8}])
def test_an_unknown_cache_is_rejected(config):
    with pytest.raises(QCompressError, match="bench"):
        kv_blocks_of({"num_attention_heads": 1, "hidden_size": 8, "num_hidden_layers": 1} | config)


def test_device_weights_are_the_tensors_of_the_files(tiny_llama):
    checkpoint, model = Checkpoint(tiny_llama), read_footprint(tiny_llama)
    assert model.weights == sum(info.bytes for info in checkpoint.tensors.values())
    assert model.read == model.weights, "a tied embedding is also the head, so each token reads all of it"


def test_a_token_reads_one_row_of_an_untied_embedding(tiny_qwen2):
    model = read_footprint(tiny_qwen2)
    assert model.weights - model.read == 128 * 64 * 2


def test_a_config_alone_predicts_the_same_as_its_checkpoint(tiny_qwen2, tmp_path):
    (tmp_path / "config.json").write_text((tiny_qwen2 / "config.json").read_text())
    bare, whole = read_footprint(tmp_path), read_footprint(tiny_qwen2)
    assert (bare.weights, bare.read, bare.blocks) == (whole.weights, whole.read, whole.blocks)


def test_the_predicted_packed_size_matches_a_packed_checkpoint(tiny_llama, quantized):
    planned = packed_footprint(read_footprint(tiny_llama), "awq")
    assert planned.name.endswith(" as awq")
    packed = read_footprint(quantized["awq"])
    assert abs(planned.weights - packed.weights) < 0.05 * packed.weights


def test_weights_overhead_and_requests_fill_the_memory_exactly():
    model = read_footprint(CONFIGS / "seed-student.json")
    row = predict(model, ORIN, 1024, 512, 0)
    room = row["usable_bytes"] - row["weights_bytes"] - row["overhead_bytes"]
    assert row["largest_batch"] == room // row["kv_bytes_per_request"] > 0
    assert row["kv_bytes_per_request"] == 1536 * row["kv_bytes_per_token"]
    short = replace(ORIN, share=(ORIN.usable - room + row["kv_bytes_per_request"] - 8) / ORIN.memory)
    too_large = predict(model, short, 1024, 512, 0)
    assert not too_large["fits"] and "8 B too much" in too_large["reason"] and too_large["largest_batch"] == 0


def test_the_estimate_is_bandwidth_over_bytes():
    model = read_footprint(CONFIGS / "qwen2.5-1.5b-instruct.json")
    row = predict(model, ORIN, 1024, 512, 0)
    assert row["decode_tokens_per_s_estimate"] == pytest.approx(102.4e9 / (model.read + 1280 * 28_672))
    assert predict(model, memory_only(8 * GIB), 1024, 512, 0)["decode_tokens_per_s_estimate"] is None


def test_every_hardware_has_a_plausible_size_and_a_unique_name():
    assert len({hardware.name for hardware in HARDWARE}) == len(HARDWARE) == 15
    for hardware in HARDWARE:
        nominal = int(hardware.title.rpartition(" ")[2].removesuffix("GB")) * GIB
        assert 0.9 * nominal < hardware.memory < nominal and 0.7 < hardware.share < 1
        assert 50e9 < hardware.bandwidth < 3.5e12 and hardware.capability >= 75
        assert hardware.unified == hardware.title.startswith("Jetson")
    assert find_hardware(("all",)) == list(HARDWARE) and find_hardware(("t4", "t4")) == [T4]


def test_an_unknown_hardware_lists_the_valid_names():
    with pytest.raises(QCompressError, match=r"--hardware pi5: unknown name; use orin-nano, .*rtx-4090"):
        find_hardware(("pi5",))


def test_turing_runs_marlin_in_float16_and_rejects_bfloat16_models():
    assert kernel_of(T4, PACKED | {"dtype": "bfloat16"}) == "Marlin, computed in float16"
    assert kernel_of(ORIN, PACKED | {"dtype": "bfloat16"}) == "Marlin"
    assert kernel_of(ORIN, {}) == "none needed"
    assert kernel_of(replace(T4, capability=70), PACKED).startswith("none: ")
    model = read_footprint(CONFIGS / "qwen2.5-1.5b-instruct.json")
    gemma = replace(model, config=model.config | PACKED | {"model_type": "gemma2"})
    assert "bfloat16" in predict(gemma, T4, 8, 8, 0)["reason"]
    assert predict(gemma, ORIN, 8, 8, 0)["fits"]
    plain = replace(gemma, config=model.config | {"model_type": "gemma2"})
    row = predict(plain, T4, 8, 8, 0)
    assert not row["fits"] and "bfloat16" in row["reason"] and row["kernel"] == f"none: {row['reason']}"


def test_a_request_beyond_the_context_is_rejected(tiny_llama):
    with pytest.raises(QCompressError, match="1,536 tokens is longer than the model's context of 1,024"):
        predict_rows([read_footprint(tiny_llama)], HARDWARE, 1024, 512)


def test_predicted_rows_survive_json(tiny_llama):
    rows = predict_rows([read_footprint(tiny_llama)], HARDWARE, 64, 8)
    assert json.loads(json.dumps(rows)) == rows and [row["hardware"] for row in rows] == [b.name for b in HARDWARE]


def test_two_checkpoints_of_one_name_are_shown_by_path(tmp_path):
    paths = [tmp_path / name / "model" for name in ("a", "b")]
    for path in paths:
        path.mkdir(parents=True)
        (path / "config.json").write_text((CONFIGS / "seed-student.json").read_text())
    models = read_footprints([*paths, CONFIGS / "seed-student.json"])
    assert [model.name for model in models] == [str(paths[0]), str(paths[1]), "seed-student"]
    assert packed_footprint(models[0], "awq").name == f"{paths[0]} as awq"

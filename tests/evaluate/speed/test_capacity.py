"""What a KV cache weighs, and what fits where: real configs pinned, sliding windows, boards, bad input."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.evaluate.speed.capacity import (
    KvBlock,
    kv_blocks_of,
    kv_bytes,
    longest_within,
    packed_subject,
    predict,
    predict_rows,
    read_subject,
    read_subjects,
    windows_of,
)
from compress.evaluate.speed.hardware import BOARDS, GIB, find_boards, kernel_of, plain_memory

CONFIGS = Path(__file__).parents[3] / "recipes" / "configs"
T4, ORIN = find_boards(("t4", "orin-nano"))
PACKED = {"quantization_config": {"quant_method": "awq"}}


@pytest.mark.parametrize(
    ("name", "size"),
    [("qwen2.5-7b-instruct", 57_344), ("qwen2.5-1.5b-instruct", 28_672), ("seed-student", 51_200)],
)
def test_the_kv_cache_of_real_configs_is_pinned(name, size):
    assert read_subject(CONFIGS / f"{name}.json").kv_bytes_per_token == size


def test_a_head_width_of_its_own_counts_and_missing_kv_heads_are_all_heads():
    config = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
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
        ({"model_type": "mistral"}, [8] * 6),
        ({"model_type": "any", "layer_types": ["full_attention", "sliding_attention"] * 3}, [None, 8] * 3),
    ],
    ids=["qwen2 off", "qwen2 on", "gemma2", "gemma3", "mistral", "layer_types"],
)
def test_windows_slide_where_the_config_says(extra, windows):
    assert windows_of({"num_hidden_layers": 6, "sliding_window": 8} | extra) == windows


def test_a_full_window_stops_growing_and_blocks_are_whole():
    blocks = (KvBlock(10), KvBlock(10, window=32))
    assert kv_bytes(blocks, 17) == 2 * 320
    assert kv_bytes(blocks, 64) == 640 + 320
    assert kv_bytes(blocks, 640) - kv_bytes(blocks, 320) == 3200


@pytest.mark.parametrize("room", [0, 159, 160, 161, 5000])
def test_the_longest_context_fits_and_one_more_does_not(room):
    blocks, limit = (KvBlock(10), KvBlock(10, window=32)), 200
    found = longest_within(blocks, room, limit)
    assert kv_bytes(blocks, found) <= room
    assert found == limit or kv_bytes(blocks, found + 1) > room


@pytest.mark.parametrize("config", [{"kv_lora_rank": 512}, {"layer_types": ["linear_attention"], "hidden_size": 8}])
def test_a_cache_of_another_kind_is_refused(config):
    with pytest.raises(QCompressError, match="only caches"):
        kv_blocks_of({"num_attention_heads": 1, "hidden_size": 8, "num_hidden_layers": 1} | config)


def test_weights_on_the_device_are_the_tensors_of_the_files(tiny_llama):
    checkpoint, subject = Checkpoint(tiny_llama), read_subject(tiny_llama)
    assert subject.weights == sum(info.bytes for info in checkpoint.tensors.values())
    assert subject.read == subject.weights, "a tied embedding is the head, and read as a whole"


def test_an_untied_embedding_is_only_looked_up(tiny_qwen2):
    subject = read_subject(tiny_qwen2)
    assert subject.weights - subject.read == 128 * 64 * 2


def test_a_config_alone_predicts_what_the_checkpoint_does(tiny_qwen2, tmp_path):
    (tmp_path / "config.json").write_text((tiny_qwen2 / "config.json").read_text())
    bare, whole = read_subject(tmp_path), read_subject(tiny_qwen2)
    assert (bare.weights, bare.read, bare.blocks) == (whole.weights, whole.read, whole.blocks)


def test_what_packing_would_make_weighs_what_it_makes(tiny_llama, quantized):
    planned = packed_subject(read_subject(tiny_llama), "awq")
    assert planned.name.endswith(" as awq")
    made = read_subject(quantized["awq"])
    assert abs(planned.weights - made.weights) < 0.05 * made.weights


def test_memory_is_shared_out_exactly():
    subject = read_subject(CONFIGS / "seed-student.json")
    row = predict(subject, ORIN, 1024, 512, 0)
    room = row["usable_bytes"] - row["weights_bytes"] - row["overhead_bytes"]
    assert row["largest_batch"] == room // row["kv_bytes_per_request"] > 0
    assert row["kv_bytes_per_request"] == 1536 * row["kv_bytes_per_token"]
    short = replace(ORIN, share=(ORIN.usable - room + row["kv_bytes_per_request"] - 8) / ORIN.memory)
    refused = predict(subject, short, 1024, 512, 0)
    assert not refused["fits"] and "bytes too many" in refused["reason"] and refused["largest_batch"] == 0


def test_the_estimate_is_bandwidth_over_bytes_and_only_where_both_are_known():
    subject = read_subject(CONFIGS / "qwen2.5-1.5b-instruct.json")
    row = predict(subject, ORIN, 1024, 512, 0)
    assert row["decode_tokens_per_s_estimate"] == pytest.approx(102.4e9 / (subject.read + 1280 * 28_672))
    assert predict(subject, plain_memory(8 * GIB), 1024, 512, 0)["decode_tokens_per_s_estimate"] is None


def test_boards_are_plausible_and_named_once():
    assert len({board.name for board in BOARDS}) == len(BOARDS) == 6
    for board in BOARDS:
        assert 8 * GIB <= board.memory <= 24 * GIB and 0.5 < board.share < 1
        assert 50e9 < board.bandwidth < 1.1e12 and board.capability >= 75
    assert find_boards(("all",)) == list(BOARDS) and find_boards(("t4", "t4")) == [T4]


def test_an_unknown_board_names_the_known():
    with pytest.raises(QCompressError, match=r"--board pi5: not known; take orin-nano, .*rtx-4090"):
        find_boards(("pi5",))


def test_turing_runs_marlin_in_float16_and_refuses_what_needs_bfloat16():
    assert kernel_of(T4, PACKED | {"dtype": "bfloat16"}) == "Marlin, computed in float16"
    assert kernel_of(ORIN, PACKED | {"dtype": "bfloat16"}) == "Marlin"
    assert kernel_of(ORIN, {}) == "none needed"
    assert kernel_of(replace(T4, capability=70), PACKED).startswith("none: ")
    subject = read_subject(CONFIGS / "qwen2.5-1.5b-instruct.json")
    gemma = replace(subject, config=subject.config | PACKED | {"model_type": "gemma2"})
    assert "bfloat16" in predict(gemma, T4, 8, 8, 0)["reason"]
    assert predict(gemma, ORIN, 8, 8, 0)["fits"]
    plain = replace(gemma, config=subject.config | {"model_type": "gemma2"})
    row = predict(plain, T4, 8, 8, 0)
    assert not row["fits"] and "bfloat16" in row["reason"] and row["kernel"] == f"none: {row['reason']}"


def test_a_request_beyond_the_context_is_one_line(tiny_llama):
    with pytest.raises(QCompressError, match="1,536 tokens is longer than its context of 1,024"):
        predict_rows([read_subject(tiny_llama)], BOARDS, 1024, 512)


def test_rows_are_json(tiny_llama):
    rows = predict_rows([read_subject(tiny_llama)], BOARDS, 64, 8)
    assert json.loads(json.dumps(rows)) == rows and [row["board"] for row in rows] == [b.name for b in BOARDS]


def test_two_checkpoints_of_one_name_are_told_apart(tmp_path):
    paths = [tmp_path / name / "model" for name in ("a", "b")]
    for path in paths:
        path.mkdir(parents=True)
        (path / "config.json").write_text((CONFIGS / "seed-student.json").read_text())
    subjects = read_subjects([*paths, CONFIGS / "seed-student.json"])
    assert [subject.name for subject in subjects] == [str(paths[0]), str(paths[1]), "seed-student"]
    assert packed_subject(subjects[0], "awq").name == f"{paths[0]} as awq"

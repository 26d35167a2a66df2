import json

import pytest

from compress.checkpoint.read import Checkpoint
from compress.evaluate.drift.compare import compare_rows, describe
from compress.evaluate.names import short_names

WEIGHTS = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)  # in the linears of tiny_llama's two blocks
PARAMETERS = WEIGHTS + 128 * 64 + 5 * 64


def test_a_tied_head_counts_once_and_float16_weights_have_16_bits(tiny_llama):
    row = describe(Checkpoint(tiny_llama), "tiny", "reference")
    assert row["bits_per_weight"] == 16 and row["parameters"] == PARAMETERS
    assert row["bytes"] == (tiny_llama / "model.safetensors").stat().st_size
    assert row["bits_per_parameter"] == 8 * row["bytes"] / PARAMETERS
    assert row["format"] == "float16"


def test_biases_count_as_parameters_but_not_as_bits_per_weight(tiny_qwen2):
    row = describe(Checkpoint(tiny_qwen2), "tiny", "reference")
    assert row["bits_per_weight"] == 16
    assert row["parameters"] == PARAMETERS + 128 * 64 + 2 * (64 + 32 + 32)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("awq", 0),
        ("gptq", 32 * 2 * (6 * 64 + 128)),  # g_idx: an int32 for every input of every linear
        ("compressed-tensors", 64 * 2 * 14),  # weight_shape: two int64 for each of 14 linears
    ],
)
def test_bits_per_weight_are_the_bits_on_disk(quantized, name, extra):
    row = describe(Checkpoint(quantized[name]), name, "candidate")
    group = 32 * 4 + 16 + 4  # codes, a float16 scale, a zero
    assert row["bits_per_weight"] == pytest.approx(group / 32 + extra / WEIGHTS)
    assert (row["format"], row["method"]) == (name, "rtn")


def test_one_row_per_checkpoint_the_reference_first(tiny_llama, quantized, windows):
    rows = compare_rows(tiny_llama, list(quantized.values()), windows)
    assert [row["name"] for row in rows] == ["llama", *quantized]
    assert [row["role"] for row in rows] == ["reference", "candidate", "candidate", "candidate"]
    reference = rows[0]
    assert (reference["kl"], reference["perplexity_ratio"], reference["top1"]) == (0, 1, 1)
    assert len({tuple(row) for row in rows}) == 1
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_the_ratio_is_the_quotient_of_both_perplexities(tiny_llama, quantized, windows):
    reference, *rows = compare_rows(tiny_llama, list(quantized.values()), windows)
    for row in rows:
        assert row["perplexity"] / reference["perplexity"] == pytest.approx(row["perplexity_ratio"])


def test_other_candidates_never_change_a_row(tiny_llama, quantized, windows):
    together = compare_rows(tiny_llama, [quantized["gptq"], quantized["awq"]], windows)[2]
    assert together == compare_rows(tiny_llama, [quantized["awq"]], windows)[1]


def test_a_row_has_its_windows_and_the_record_of_the_checkpoint(tiny_llama, quantized, windows):
    row = compare_rows(tiny_llama, [quantized["awq"]], windows)[1]
    assert (row["n_samples"], row["seq_len"], row["vocabulary"]) == (5, 24, 128)
    assert row["tokens"] == windows.mask[:, 1:].sum() and row["start_token"] is None
    assert row["digest"] == Checkpoint(quantized["awq"]).digest and row["record"]["settings"]["group_size"] == 32
    assert Checkpoint(quantized["awq"]).bytes == row["bytes"]


def test_names_are_short_unless_two_are_equal(tmp_path):
    paths = [tmp_path / "a/model", tmp_path / "b/model", tmp_path / "c/other"]
    assert short_names(paths) == [str(paths[0]), str(paths[1]), "other"]

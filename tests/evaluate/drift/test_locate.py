"""A damaged block is the only outlier."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compress.checkpoint.read import Checkpoint
from compress.core.config import QuantizeConfig
from compress.core.errors import QCompressError
from compress.evaluate.drift.compare import compare_rows
from compress.evaluate.drift.limits import format_outliers
from compress.evaluate.drift.locate import deviations, linear_row, locate_drift
from compress.quantize.job import quantize_checkpoint

BLOCKS = 8


def locate(reference, candidate, windows):
    """`locate_drift` of two directories."""
    return locate_drift(Checkpoint(reference), Checkpoint(candidate), windows)


@pytest.fixture(scope="module")
def deep(save_model, tmp_path_factory):
    """tiny_llama with eight blocks."""
    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": BLOCKS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    config = LlamaConfig(**sizes, **heads, tie_word_embeddings=True)
    return save_model(LlamaForCausalLM(config), tmp_path_factory.mktemp("deep") / "deep", seed=4)


@pytest.fixture(scope="module")
def rounded_deep(deep, tmp_path_factory):
    path = tmp_path_factory.mktemp("deep") / "rounded"
    quantize_checkpoint(deep, path, QuantizeConfig(method="rtn", format="awq", group_size=32))
    return path


@pytest.fixture
def damaged(rounded_deep, change_copy, tmp_path):
    def damage(block, factor, only=""):
        def change(config, tensors):
            for name, tensor in tensors.items():
                if name.startswith(f"model.layers.{block}.") and name.endswith(".scales") and only in name:
                    tensors[name] = (tensor.float() * factor).half()

        return change_copy(rounded_deep, tmp_path / f"damaged-{block}", change)

    return damage


@pytest.mark.parametrize(("block", "factor"), [(0, 1.25), (3, 0.8), (BLOCKS - 1, 1.25)])
def test_a_damaged_block_is_the_only_outlier(deep, damaged, windows, block, factor):
    rows = locate(deep, damaged(block, factor), windows)
    assert [row["block"] for row in rows if row["outlier"]] == [block]
    assert (rows[block]["gain"] - 1) * (factor - 1) > 0


def test_the_error_of_a_block_never_reaches_the_next(deep, rounded_deep, damaged, windows):
    sound, hurt = (
        locate(deep, rounded_deep, windows),
        locate(deep, damaged(2, 1.5), windows),
    )
    for before, after in zip(sound, hurt, strict=True):
        same = {key: before[key] == pytest.approx(after[key]) for key in ("error", "gain")}
        assert all(same.values()) == (before["block"] != 2)


def test_the_gain_of_a_linear_equals_the_factor_on_its_scales(deep, rounded_deep, damaged, windows):
    sound, hurt = (locate(deep, path, windows)[4] for path in (rounded_deep, damaged(4, 1.5, "q_proj")))
    gains = {row["name"]: row["gain"] for row in sound["linears"]}
    for row in hurt["linears"]:
        factor = 1.5 if row["name"] == "self_attn.q_proj" else 1.0
        if row["name"] in ("self_attn.q_proj", "self_attn.k_proj"):
            assert row["gain"] == pytest.approx(factor * gains[row["name"]], rel=1e-3)


def test_the_only_damaged_linear_is_named(deep, damaged, windows):
    rows = locate(deep, damaged(5, 1.5, "q_proj"), windows)
    assert [(row["block"], row["linear"]) for row in rows if row["outlier"]] == [(5, "self_attn.q_proj")]
    assert format_outliers({"blocks": rows}).startswith("block 5 self_attn.q_proj (gain 1.")
    hurt = locate(deep, damaged(3, 1.25), windows)[3]
    assert hurt["outlier"] and hurt["linear"] is None  # the whole block is


def test_one_massive_token_never_changes_the_gain_of_a_linear():
    sums = torch.tensor([[0.01, 1.0, 1.0]] * 9 + [[1e6, 2e6, 1e6]], dtype=torch.float64)
    row = linear_row("mlp.down_proj", sums, None)
    assert row["gain"] == 1 and row["error"] == pytest.approx(1, rel=1e-3)


def test_rounding_and_the_reference_have_no_outlier(deep, rounded_deep, windows):
    for path in (deep, rounded_deep):
        assert not any(row["outlier"] for row in locate(deep, path, windows))
    itself = locate(deep, deep, windows)
    assert all((row["error"], row["gain"], row["score"]) == (0, pytest.approx(1), 0) for row in itself)


def test_linears_have_their_measured_and_their_recorded_error(deep, rounded_deep, windows):
    row = locate(deep, rounded_deep, windows)[0]
    recorded = {linear["name"]: linear["recorded"] for linear in row["linears"]}
    assert recorded.keys() == {f"self_attn.{n}_proj" for n in "qko"} | {"mlp.gate_proj", "mlp.down_proj"}
    assert all(error > 0 for error in recorded.values()) and row["excess"] > 0
    first = next(linear for linear in row["linears"] if linear["name"] == "self_attn.q_proj")
    assert first["error"] == pytest.approx(first["recorded"], rel=0.5)  # its inputs are the reference's


def test_locate_adds_blocks_to_every_candidate(deep, rounded_deep, windows):
    reference, row = compare_rows(deep, [rounded_deep], windows, locate=True)
    assert reference["blocks"] == [] and len(row["blocks"]) == BLOCKS


def test_a_candidate_with_other_blocks_is_rejected(tiny_llama, narrow, deep, windows):
    with pytest.raises(QCompressError, match=r"has 2 blocks of width 32, .* 2 of width 64"):
        locate(tiny_llama, narrow, windows)
    with pytest.raises(QCompressError, match=r"has 2 blocks of width 64, .* 8 of width 64"):
        locate(deep, tiny_llama, windows)


def test_one_far_value_never_hides_its_deviation():
    scores = deviations([0.0, 1.0, -1.0, 2.0, -2.0, 1000.0], least=0.1)
    assert scores[-1] > 100 and max(scores[:-1]) < 2
    assert deviations([1.0, 1.0, 1.0, 1.05], least=0.1) == [0, 0, 0, 0]

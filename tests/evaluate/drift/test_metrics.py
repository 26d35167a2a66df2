import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.checkpoint.load import load_model
from compress.core.errors import QCompressError
from compress.evaluate.drift import metrics as drift
from compress.evaluate.drift.compare import compare_rows, drift_row
from compress.evaluate.drift.metrics import compare_chunk, log_probabilities

FIGURES = ("perplexity", "perplexity_ratio", "kl", "top1", "top5", "kl_median", "kl_p95", "kl_p99")


@torch.no_grad()
def plain_figures(reference, candidate, windows, vocabulary=128):
    """The same figures from whole models, full logits and float64."""
    ids, scored = windows.ids, windows.mask[:, 1:]
    logits = [load_model(path)(ids).logits[:, :-1, :vocabulary] for path in (reference, candidate)]
    reference, candidate = (part.double().log_softmax(-1)[scored] for part in logits)
    tokens = ids[:, 1:][scored][:, None]
    kl = (reference.exp() * (reference - candidate)).sum(-1)
    nlls = [-part.gather(1, tokens).mean().item() for part in (reference, candidate)]
    return {
        "reference_perplexity": math.exp(nlls[0]),
        "perplexity": math.exp(nlls[1]),
        "perplexity_ratio": math.exp(nlls[1] - nlls[0]),
        "kl": kl.mean().item(),
        "kl_median": kl.quantile(0.5).item(),
        "kl_p95": kl.quantile(0.95).item(),
        "kl_p99": kl.quantile(0.99).item(),
        "top5": (candidate.topk(5).indices == reference.argmax(-1, keepdim=True)).any(-1).double().mean().item(),
        "top1": (reference.argmax(-1) == candidate.argmax(-1)).double().mean().item(),
    }


def assert_equal_figures(row, expected, tolerance=1e-5):
    for name in FIGURES:
        assert row[name] == pytest.approx(expected[name], rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize("name", ["awq", "gptq", "compressed-tensors"])
def test_figures_equal_a_plain_computation_in_every_format(tiny_llama, quantized, windows, name):
    rows = compare_rows(tiny_llama, [quantized[name]], windows)
    expected = plain_figures(tiny_llama, quantized[name], windows)
    assert_equal_figures(rows[1], expected)
    assert rows[0]["perplexity"] == pytest.approx(expected["reference_perplexity"], rel=1e-5)
    assert rows[1]["kl"] > 1e-4  # rounding did something


def test_figures_equal_a_plain_computation_across_families(tiny_llama, tiny_qwen2, windows):
    assert_equal_figures(drift_row(tiny_llama, tiny_qwen2, windows), plain_figures(tiny_llama, tiny_qwen2, windows))


def test_a_student_of_another_width_can_be_compared(tiny_llama, narrow, windows):
    assert_equal_figures(drift_row(tiny_llama, narrow, windows), plain_figures(tiny_llama, narrow, windows))


@pytest.mark.parametrize(("micro_batch", "chunk"), [(1, 1), (2, 7), (3, 1000), (5, 64)])
def test_micro_batch_and_chunk_never_change_the_result(tiny_llama, quantized, windows, micro_batch, chunk):
    expected = drift_row(tiny_llama, quantized["awq"], windows)
    row = drift_row(tiny_llama, quantized["awq"], windows, micro_batch=micro_batch, chunk=chunk)
    assert_equal_figures(row, expected, 1e-6)
    assert row["kl_se"] == pytest.approx(expected["kl_se"], rel=1e-4)


def test_a_checkpoint_has_not_drifted_from_itself(tiny_llama, windows):
    row = drift_row(tiny_llama, tiny_llama, windows)
    assert (row["kl"], row["kl_p99"], row["perplexity_ratio"], row["top1"], row["top5"]) == (0, 0, 1, 1, 1)
    assert (row["kl_se"], row["perplexity_ratio_se"], row["top1_se"]) == (0, 0, 0)
    assert (row["perplexity_ratio_low"], row["perplexity_ratio_high"], row["perplexity_difference"]) == (1, 1, 0)


def test_padding_rows_of_the_vocabulary_never_count(tiny_llama, padded, windows):
    for reference, candidate in ((tiny_llama, padded), (padded, tiny_llama)):
        row = drift_row(reference, candidate, windows)
        assert row["vocabulary"] == 128 and row["kl"] == pytest.approx(0, abs=1e-6)
        assert row["perplexity_ratio"] == pytest.approx(1, abs=1e-6)


def test_tokens_outside_the_mask_never_count(tiny_llama, quantized, windows):
    mask = torch.zeros_like(windows.mask)
    mask[1, 3:9] = mask[4, 2:20] = True
    few = replace(windows, mask=mask)
    row = drift_row(tiny_llama, quantized["gptq"], few)
    assert row["tokens"] == 24
    assert_equal_figures(row, plain_figures(tiny_llama, quantized["gptq"], few))


def test_the_error_of_a_ratio_is_below_that_of_each_perplexity(tiny_llama, quantized, make_windows):
    row = drift_row(tiny_llama, quantized["awq"], make_windows(n_samples=12))
    assert 0 < row["perplexity_ratio_se"] / row["perplexity_ratio"] < row["perplexity_se"] / row["perplexity"] / 3


def test_the_kl_of_two_coins_equals_the_formula():
    fair, biased = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    _, _, kl, agrees, _ = compare_chunk(
        fair + 30, biased - 30, torch.tensor([0])
    )  # a shift of all logits means nothing
    assert kl.item() == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), abs=1e-5)
    assert agrees.item()


def test_tokens_of_equal_probability_all_agree():
    reference, candidate = torch.zeros(4, 9), -torch.arange(9.0).repeat(4, 1)
    reference[range(4), [0, 4, 5, 1]] = 9.0
    candidate[3, :3] = 0.0  # three are equally likely
    *_, agrees, agrees5 = compare_chunk(reference, candidate, torch.zeros(4, dtype=torch.int64))
    assert agrees.tolist() == [True, False, False, True] and agrees5.tolist() == [True, True, False, True]


def test_strips_never_change_the_result(monkeypatch, tiny_llama, quantized, windows):
    expected = drift_row(tiny_llama, quantized["awq"], windows)
    monkeypatch.setattr(drift, "STRIP_LOGITS", 3 * 128)
    assert_equal_figures(drift_row(tiny_llama, quantized["awq"], windows), expected, 1e-7)


def test_log_probabilities_keep_the_tail_of_a_large_vocabulary():
    logits = torch.zeros(4, 150_000)
    logits[:, 7] = torch.tensor([10.0, 15.0, 18.0, 20.0])
    expected = logits.double().log_softmax(-1)
    torch.testing.assert_close(log_probabilities(logits).double(), expected, atol=4e-6, rtol=0)


def test_a_nan_is_reported_with_checkpoint_and_window(tiny_qwen2, windows, change_copy, tmp_path):
    token = 77

    def wound(config, tensors):
        tensors["model.embed_tokens.weight"][token] = math.nan  # the head is not tied: only its readers are hurt

    broken = change_copy(tiny_qwen2, tmp_path / "broken", wound)
    ids = torch.where(windows.ids == token, token + 1, windows.ids)
    ids[2, 0] = token
    wounded = replace(windows, ids=ids, mask=torch.ones_like(windows.mask))
    for reference, candidate in ((tiny_qwen2, broken), (broken, tiny_qwen2)):
        with pytest.raises(QCompressError, match="broken: nll is nan in window 3, position 1"):
            drift_row(reference, candidate, wounded)


def test_a_token_of_probability_0_is_rejected(tiny_qwen2, windows, change_copy, tmp_path):
    def wound(config, tensors):
        tensors["lm_head.weight"][5] = -math.inf

    broken = change_copy(tiny_qwen2, tmp_path / "broken", wound)
    with pytest.raises(QCompressError, match="broken"):
        drift_row(tiny_qwen2, broken, windows)


def test_ids_beyond_the_shared_vocabulary_are_rejected(tiny_llama, windows):
    ids = windows.ids.clone()
    ids[0, 0] = 128
    with pytest.raises(ValueError, match="token id 128 in the windows is too large: all models share 128 ids"):
        drift_row(tiny_llama, tiny_llama, replace(windows, ids=ids))


def test_every_window_and_block_is_read_once_per_checkpoint(tiny_llama, quantized, windows):
    reports = []
    compare_rows(tiny_llama, [quantized["awq"], quantized["gptq"]], windows, report=reports.append)
    names = [Path(path).name for path in (tiny_llama, quantized["awq"], quantized["gptq"])]
    blocks = [(row["reads"], row["block"]) for row in reports if "reads" in row]
    assert blocks == [(name, f"{done}/2") for name in names for done in range(3)]
    tokens = f"{int(windows.mask[:, 1:].sum())}/{int(windows.mask[:, 1:].sum())}"
    assert [(row["compares"], row["tokens"]) for row in reports if "compares" in row] == [
        (name, tokens) for name in names[1:]
    ]

"""Where the drift is: positions, documents, the worst tokens."""

import math
from dataclasses import replace

import pytest
import torch

from compress.checkpoint.load import load_model
from compress.checkpoint.read import Checkpoint
from compress.evaluate.drift.breakdown import position_edges
from compress.evaluate.drift.compare import compare_rows, drift_row
from compress.evaluate.drift.windows import evaluation_windows


@pytest.fixture
def jsonl(tmp_path):
    """Six documents of different length."""
    path = tmp_path / "many.jsonl"
    lines = [f'{{"text": "{word} jumps over the lazy dog, again and again. {"so " * 12}"}}\n' for word in "abcdef"]
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("seq_len", [1, 8, 16, 17, 24, 64, 65])
def test_ranges_cover_every_position_once(seq_len):
    edges = position_edges(seq_len)
    assert edges[0] == 0 and edges[-1] == seq_len and edges == sorted(set(edges))


def test_ranges_and_documents_add_up_to_all_tokens(tiny_llama, quantized, jsonl):
    windows = evaluation_windows(tiny_llama, [quantized["awq"]], str(jsonl), n_samples=7, seq_len=40)
    row = drift_row(tiny_llama, quantized["awq"], windows)
    assert [(bucket["start"], bucket["end"]) for bucket in row["positions"]] == [(0, 16), (16, 32), (32, 40)]
    assert [bucket["tokens"] for bucket in row["positions"]] == [7 * 15, 7 * 16, 7 * 8]  # no logit says the first token
    counts = torch.bincount(windows.documents[:, 1:][windows.mask[:, 1:]])
    assert {part["document"]: part["tokens"] for part in row["documents"]} == {
        name: count for name, count in zip(windows.names, counts.tolist(), strict=False) if count
    }
    for rows in (row["positions"], row["documents"]):
        assert sum(part["tokens"] for part in rows) == row["tokens"]
        assert sum(part["kl"] * part["tokens"] for part in rows) / row["tokens"] == pytest.approx(row["kl"])
        nll = sum(part["nll"] * part["tokens"] for part in rows) / row["tokens"]
        assert math.exp(nll) == pytest.approx(row["perplexity"])
    assert len(row["documents"]) > 1 and all("many.jsonl: line " in part["document"] for part in row["documents"])
    drifts = [part["kl"] for part in row["documents"]]
    assert drifts == sorted(drifts, reverse=True)


def test_a_documents_row_covers_only_tokens_of_that_document(tiny_llama, quantized, windows):
    documents = torch.arange(5)[:, None].expand(5, 24)
    named = replace(windows, documents=documents, names=tuple("abcde"))
    row = drift_row(tiny_llama, quantized["awq"], named)
    for part in row["documents"]:
        index = "abcde".index(part["document"])
        mask = torch.zeros_like(windows.mask)
        mask[index] = windows.mask[index]
        assert part["kl"] == pytest.approx(drift_row(tiny_llama, quantized["awq"], replace(windows, mask=mask))["kl"])


def test_windows_without_documents_have_no_document_rows(tiny_llama, quantized, windows):
    assert drift_row(tiny_llama, quantized["awq"], windows)["documents"] == []


@torch.no_grad()
def test_the_worst_tokens_equal_those_of_whole_models(tiny_llama, quantized, windows):
    reference, row = compare_rows(tiny_llama, [quantized["gptq"]], windows)
    models = load_model(tiny_llama), load_model(quantized["gptq"])
    ours, theirs = (model(windows.ids).logits[:, :-1].double().log_softmax(-1) for model in models)
    kl = (ours.exp() * (ours - theirs)).sum(-1).masked_fill(~windows.mask[:, 1:], -1)
    window, position = divmod(int(kl.argmax()), kl.shape[1])
    worst, tokenizer = row["worst"][0], Checkpoint(tiny_llama).tokenizer
    assert reference["worst"] == [] and len(row["worst"]) == 20
    assert worst["kl"] == pytest.approx(kl.max().item(), rel=1e-4)
    assert (worst["window"], worst["position"]) == (window, position + 1)
    token = windows.ids[window, position + 1]
    assert worst["token"] == tokenizer.decode([token])
    assert worst["before"] == tokenizer.decode(windows.ids[window, max(0, position - 31) : position + 1])
    assert worst["nll"] == pytest.approx(-theirs[window, position, token].item(), rel=1e-4)
    for name, log_probs in (("reference", ours), ("candidate", theirs)):
        expected = log_probs[window, position].exp().topk(3)
        assert [part["probability"] for part in worst[name]] == pytest.approx(expected.values.tolist(), rel=1e-4)
        assert [part["token"] for part in worst[name]] == [tokenizer.decode([index]) for index in expected.indices]

import json

import pytest
import torch

from calibration.corpus import source_digest
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.evaluate.drift.compare import compare_rows
from compress.evaluate.drift.windows import (
    check_text_unseen,
    check_tokenizers,
    evaluation_windows,
    shared_vocabulary,
)

SIZE = {"n_samples": 4, "seq_len": 32}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox asks a question; the lazy dog answers it in a few words.\n" * 40)
    return path


def calibrated_on(text, **more):
    source = {"name": "other-name.txt", "digest": source_digest(str(text))}
    return lambda record: record.update(calibration={"sources": [source], **more})


@pytest.mark.parametrize("which", ["reference", "candidate"])
def test_calibration_text_is_rejected_by_its_digest(tiny_llama, copy_with, text, which):
    seen = copy_with(tiny_llama, "qcompress.json", calibrated_on(text), which)
    pair = (seen, tiny_llama) if which == "reference" else (tiny_llama, seen)
    with pytest.raises(QCompressError, match=f"{which}.*was calibrated on text.txt .*sha256:.*--eval-text"):
        evaluation_windows(pair[0], [pair[1]], str(text), **SIZE)


def test_windows_of_calibration_text_are_rejected(tiny_llama, copy_with, text):
    windows = evaluation_windows(tiny_llama, [], str(text), **SIZE)
    seen = copy_with(tiny_llama, "qcompress.json", calibrated_on(text))
    with pytest.raises(QCompressError, match="was calibrated on text"):
        compare_rows(tiny_llama, [tiny_llama, seen], windows)


@pytest.mark.parametrize("record", [{}, {"calibration": None}, {"calibration": {"sources": [{"digest": "sha256:0"}]}}])
def test_other_text_and_records_without_text_are_accepted(tiny_llama, copy_with, text, record):
    path = copy_with(tiny_llama, "qcompress.json", lambda old: old.update(record))
    check_text_unseen({"sources": [{"name": "t", "digest": source_digest(str(text))}]}, [Checkpoint(path)])


@pytest.mark.parametrize("token", [None, 1])
def test_the_start_token_comes_from_the_record_of_the_reference(tiny_llama, copy_with, text, token):
    start = {"token": token, "nll_with": 1.0, "nll_without": 2.0}
    path = copy_with(tiny_llama, "qcompress.json", lambda record: record.update(start=start))
    windows = evaluation_windows(path, [], str(text), **SIZE)
    assert windows.manifest["start_token"] == token and windows.manifest["start"] == start
    assert (windows.ids[:, 0] == 1).all() == (token == 1)
    assert not windows.mask[:, 0].any() if token == 1 else windows.mask.all()


def test_the_start_token_does_not_depend_on_the_evaluation_windows(tiny_llama, text):
    starts = [
        evaluation_windows(tiny_llama, [], name, n_samples=count, seq_len=length).manifest["start"]
        for name, count, length in ((str(text), 2, 16), (str(text), 4, 32), ("heldout", 24, 64))
    ]
    assert starts[0] == starts[1] == starts[2] and starts[0]["nll_without"] > 0


def test_a_start_token_that_is_set_is_not_measured(tiny_llama, text, monkeypatch):
    monkeypatch.setattr("compress.evaluate.drift.windows.heldout_start", None)
    for token in (None, 1):
        windows = evaluation_windows(tiny_llama, [], str(text), start={"token": token}, **SIZE)
        assert windows.manifest["start_token"] == token


def test_the_shared_vocabulary_is_the_smallest_of_all(tiny_llama, padded, copy_with):
    assert shared_vocabulary([Checkpoint(padded), Checkpoint(tiny_llama)]) == 128
    assert shared_vocabulary([Checkpoint(padded)]) == 128  # its tokenizer knows no more

    def shrink(config):
        config["vocab_size"] = 100

    assert shared_vocabulary([Checkpoint(tiny_llama), Checkpoint(copy_with(tiny_llama, "config.json", shrink))]) == 100


def swap_two_tokens(tokenizer):
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[20:22]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def forget_merges(tokenizer):
    tokenizer["model"]["merges"].clear()


@pytest.mark.parametrize(
    ("change", "words"),
    [(swap_two_tokens, "in 2 tokens"), (forget_merges, "splits the same .* characters differently")],
)
def test_another_tokenizer_is_rejected_and_both_are_named(tiny_llama, copy_with, change, words):
    other = copy_with(tiny_llama, "tokenizer.json", change, "other")
    ids = torch.tensor(Checkpoint(tiny_llama).tokenizer("the model answers the question that the user asks").input_ids)[
        None
    ]
    with pytest.raises(QCompressError, match=words) as error:
        check_tokenizers(Checkpoint(tiny_llama), [Checkpoint(other)], ids, 128)
    assert str(tiny_llama) in error.value.message and str(other) in error.value.message


def test_tokens_beyond_the_shared_vocabulary_may_differ(tiny_llama, copy_with):
    def add_pad(tokenizer):
        tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 128, "content": "<pad>"})

    wider = copy_with(tiny_llama, "tokenizer.json", add_pad)
    assert 128 in Checkpoint(wider).tokenizer.get_vocab().values()
    check_tokenizers(Checkpoint(tiny_llama), [Checkpoint(wider)], torch.arange(20)[None], 128)


def test_a_manifest_survives_json(tiny_llama, text):
    manifest = evaluation_windows(tiny_llama, [], str(text), **SIZE).manifest
    assert json.loads(json.dumps(manifest)) == manifest

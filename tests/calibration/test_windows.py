import hashlib
import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, trainers
from transformers import PreTrainedTokenizerFast

from calibration import windows
from calibration.chat import encode_chat, encode_text
from calibration.corpus import load_documents
from calibration.errors import CalibrationError
from calibration.windows import build_windows

WORDS = [
    "the",
    "river",
    "asks",
    "miller",
    "how",
    "deep",
    "it",
    "is",
    "opinions;",
    "1,2",
    "\n",
    "\n",
    "",
    "\n\n",
    "é",
    "水",
]
CHAT = [{"role": "user", "content": "how deep?"}, {"role": "assistant", "content": "two fathoms"}]


def make_text(words, seed=0):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts_of(path):
    return [json.loads(line)["text"] for line in Path(path).read_text().splitlines()]


@pytest.fixture
def long_text(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text(make_text(3000))
    return str(path)


@pytest.fixture
def many(tmp_path):
    return write_rows(tmp_path / "many.jsonl", [{"text": f"{number} {make_text(20, number)}"} for number in range(40)])


@pytest.mark.parametrize(("n_samples", "seq_len"), [(1, 1), (1, 64), (7, 33), (20, 100)])
def test_one_text_is_cut_into_consecutive_windows_from_its_beginning(long_text, tokenizer, n_samples, seq_len):
    built = build_windows([long_text], tokenizer, n_samples=n_samples, seq_len=seq_len, seed=5)
    all_ids = encode_text(tokenizer, Path(long_text).read_text())
    assert built.ids.dtype == torch.int64 and built.ids.shape == built.mask.shape == (n_samples, seq_len)
    assert built.ids.flatten().tolist() == all_ids[: n_samples * seq_len]
    assert built.mask.all()


@pytest.mark.parametrize("characters", [1, 2, 5])
@pytest.mark.parametrize("needed", [1, 50, 999, 2000, 10**6])
@pytest.mark.parametrize("across_lines", [False, True])
def test_encoding_only_the_beginning_never_changes_its_ids(
    make_tokenizer, monkeypatch, characters, needed, across_lines
):
    text = make_text(4000, seed=1)
    tokenizer = make_tokenizer()
    if across_lines:  # tokens may join the end of one line to the next, as some sentencepiece models do
        backend = Tokenizer(models.BPE())
        backend.train_from_iterator([text[:5000]], trainers.BpeTrainer(vocab_size=200, show_progress=False))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    monkeypatch.setattr(windows, "CHARACTERS", characters)
    all_ids = encode_text(tokenizer, text)
    ids = windows._encode_beginning(tokenizer, text, needed)
    assert ids == all_ids[: len(ids)] and len(ids) >= min(needed, len(all_ids))
    assert len(ids) < len(all_ids) or needed > 999


def test_a_long_text_is_cut_between_words_at_the_end_of_a_line():
    text = "one two\nthree \n \n four\n"
    places = [windows._cut_place(text, position) for position in (0, 8, 15, 17, 30)]
    assert all(ends_line for _, ends_line in places)
    expected = ["one two", "one two\nthree", "one two\nthree", "one two\nthree \n \n four", text]
    assert [text[:cut] for cut, _ in places] == expected


@pytest.mark.parametrize("text", ["the quick brown fox " * 200_000, "abcdefgh" * 400_000])
def test_a_text_without_line_ends_is_encoded_as_far_as_needed(tokenizer, text):
    ids = windows._encode_beginning(tokenizer, text, 64)
    whole = encode_text(tokenizer, text[:20_000])
    assert 64 <= len(ids) < 100_000 and ids[:64] == whole[:64]


def test_the_same_arguments_give_the_same_bytes(many, long_text, tokenizer):
    options = {"n_samples": 4, "seq_len": 50, "start_token": 0}
    first, again, other = (
        build_windows([many, f"{long_text}=2"], tokenizer, **options, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(first.ids, again.ids) and torch.equal(first.mask, again.mask)
    assert first.manifest == again.manifest
    assert not torch.equal(first.ids, other.ids) and first.manifest["digest"] != other.manifest["digest"]


def test_a_start_token_begins_every_window_and_changes_no_other_token(many, tokenizer):
    bare = build_windows([many], tokenizer, n_samples=6, seq_len=31)
    begun = build_windows([many], tokenizer, n_samples=6, seq_len=32, start_token=0)
    assert (begun.ids[:, 0] == 0).all() and not begun.mask[:, 0].any()
    assert torch.equal(begun.ids[:, 1:], bare.ids) and torch.equal(begun.mask[:, 1:], bare.mask)


def test_documents_are_complete_shuffled_and_separated_by_the_end_token(many, tokenizer):
    total = sum(len(encode_text(tokenizer, text)) + 1 for text in texts_of(many))
    ids = build_windows([many], tokenizer, n_samples=1, seq_len=total).ids[0].tolist()
    texts = tokenizer.decode(ids).split("<|im_end|>")
    assert texts.pop() == ""
    assert sorted(texts) == sorted(texts_of(many)) and texts != texts_of(many)


def test_without_an_end_token_documents_are_joined_directly(many, make_tokenizer):
    plain = make_tokenizer(eos_token=None)
    total = sum(len(encode_text(plain, text)) for text in texts_of(many))
    built = build_windows([many], plain, n_samples=1, seq_len=total)
    assert built.manifest["sources"][0]["documents"] == 40 and built.manifest["tokens_dropped"] == 0


def test_a_conversation_is_masked_and_gets_no_second_end_token(tmp_path, tokenizer):
    source = write_rows(tmp_path / "chat.jsonl", [{"messages": CHAT}] * 3)
    ids, mask = encode_chat(tokenizer, CHAT, "")
    built = build_windows([source], tokenizer, n_samples=3, seq_len=len(ids))
    assert built.ids.tolist() == [ids] * 3 and built.mask.tolist() == [mask] * 3


def test_a_template_without_an_end_token_gets_one_outside_the_mask(tmp_path, make_tokenizer):
    colon = make_tokenizer("{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}")
    colon.chat_template += "{% if add_generation_prompt %}assistant: {% endif %}"
    source = write_rows(tmp_path / "chat.jsonl", [{"messages": CHAT}])
    ids, mask = encode_chat(colon, CHAT, "")
    built = build_windows([source], colon, n_samples=1, seq_len=len(ids) + 1)
    assert built.ids[0].tolist() == [*ids, colon.eos_token_id] and built.mask[0].tolist() == [*mask, False]


def test_prompt_rows_are_plain_text_without_a_chat_template(tmp_path, make_tokenizer):
    plain = make_tokenizer(None)
    source = write_rows(tmp_path / "a.jsonl", [{"prompt": "how deep?", "response": "two fathoms"}])
    ids = encode_text(plain, "how deep?\n\ntwo fathoms")
    built = build_windows([source], plain, n_samples=1, seq_len=len(ids))
    assert built.ids[0].tolist() == ids and built.mask.all()
    with pytest.raises(CalibrationError, match="line 1: the row has `messages`, but the tokenizer"):
        build_windows([write_rows(tmp_path / "b.jsonl", [{"messages": CHAT}])], plain, n_samples=1, seq_len=4)


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.2, 0.8)])
def test_weights_are_shares_of_the_tokens(many, long_text, tokenizer, weights):
    sources = [f"{name}={weight}" for name, weight in zip((many, long_text), weights, strict=True)]
    built = build_windows(sources, tokenizer, n_samples=4, seq_len=51, start_token=0)
    rows = built.manifest["sources"]
    assert [row["weight"] for row in rows] == list(weights)
    assert [row["tokens"] for row in rows] == [round(200 * weight / sum(weights)) for weight in weights]


@pytest.mark.parametrize("start", [None, 0])
def test_held_out_windows_come_last_and_change_no_other_window(many, long_text, tokenizer, start):
    size = {"n_samples": 5, "seq_len": 24, "start_token": start}
    for sources in ([long_text], [many], [f"{many}=3", long_text]):
        bare, more = (build_windows(sources, tokenizer, **size, held_out=held) for held in (0, 3))
        assert torch.equal(more.ids[:5], bare.ids) and torch.equal(more.mask[:5], bare.mask)
        assert len(more.ids) == 8 and more.manifest["held_out"] == 3 and more.manifest["n_samples"] == 5


def test_held_out_windows_continue_the_text_of_the_others(long_text, tokenizer):
    more = build_windows([long_text], tokenizer, n_samples=5, seq_len=24, held_out=3)
    assert torch.equal(more.ids, build_windows([long_text], tokenizer, n_samples=8, seq_len=24).ids)


def test_held_out_windows_have_the_weights_of_the_sources(many, long_text, tokenizer):
    built = build_windows([f"{many}=3", long_text], tokenizer, n_samples=4, seq_len=40, held_out=2)
    documents = [built.names[index] for index in built.documents[4:].flatten().tolist()]
    assert sum(name.startswith(many) for name in documents) == 60
    assert [row["tokens"] for row in built.manifest["sources"]] == [180, 60]


def test_documents_of_several_sources_are_interleaved(tmp_path, tokenizer):
    sources = [write_rows(tmp_path / f"{word}.jsonl", [{"text": f"{word}{i}"} for i in range(30)]) for word in "ab"]
    built = build_windows(sources, tokenizer, n_samples=1, seq_len=120)
    order = [text[0] for text in tokenizer.decode(built.ids[0]).split("<|im_end|>")[:-1]]
    assert sum(first != second for first, second in pairwise(order)) > 10


def test_shares_of_the_sources_add_up_to_all_tokens(many, long_text, tokenizer):
    built = build_windows([f"{many}=1", f"{long_text}=1", "default=1"], tokenizer, n_samples=7, seq_len=11)
    assert sum(row["tokens"] for row in built.manifest["sources"]) == 77 == built.manifest["tokens"]


def test_the_manifest_counts_used_and_dropped_tokens(many, tokenizer):
    built = build_windows([many], tokenizer, n_samples=3, seq_len=40, seed=9, start_token=0)
    (row,) = built.manifest["sources"]
    assert json.loads(json.dumps(built.manifest)) == built.manifest
    assert row["name"] == "many.jsonl" and row["digest"].startswith("sha256:")
    assert row["tokens"] == 3 * 39 and 1 < row["documents"] < 40
    read = {"n_samples": 3, "seq_len": 40, "seed": 9, "start_token": 0, "tokens": 117}
    assert read.items() <= built.manifest.items() and built.manifest["tokens_dropped"] == row["tokens_dropped"]
    ended = sum(ids.count(tokenizer.eos_token_id) for ids in built.ids[:, 1:].tolist())
    assert row["documents"] == ended + (row["tokens_dropped"] > 0)
    raw = built.ids.numpy().astype("<i8").tobytes()
    assert built.manifest["digest"] == "sha256:" + hashlib.sha256(raw).hexdigest()


def test_the_rest_of_the_last_document_is_counted_as_dropped(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("the river asks how deep it is")
    encoded = len(encode_text(tokenizer, path.read_text())) + 1
    assert build_windows([str(path)], tokenizer, n_samples=1, seq_len=7).manifest["tokens_dropped"] == encoded - 7


def test_a_text_shorter_than_one_window_is_an_error_with_both_numbers(tmp_path, tokenizer):
    path = tmp_path / "short.txt"
    path.write_text("the river")
    count = len(encode_text(tokenizer, "the river")) + 1
    with pytest.raises(CalibrationError, match=rf"short.txt: .* {count} tokens, but a window needs 63; .*--seq-len"):
        build_windows([str(path)], tokenizer, n_samples=1, seq_len=64, start_token=0)


def test_a_text_too_short_for_n_samples_names_the_number_that_fits(many, long_text, tokenizer):
    total = sum(len(encode_text(tokenizer, text)) + 1 for text in texts_of(many))
    fitting = total // 16
    build_windows([many], tokenizer, n_samples=fitting, seq_len=16)
    with pytest.raises(CalibrationError, match=rf"{total} tokens, but .* need 160000; lower --samples to {fitting}"):
        build_windows([many], tokenizer, n_samples=10000, seq_len=16)
    with pytest.raises(CalibrationError, match=r"its weight requires \d+ tokens; .*lower its weight"):
        build_windows([f"{many}=3", long_text], tokenizer, n_samples=500, seq_len=16)


def test_a_share_shorter_than_a_window_names_the_tokens_of_the_share(tmp_path, long_text, tokenizer):
    path = tmp_path / "short.txt"
    path.write_text("the")
    with pytest.raises(CalibrationError, match=r"2 tokens, but its weight requires 8 tokens; lower --samples to 1,"):
        build_windows([f"{path}=1", f"{long_text}=7"], tokenizer, n_samples=4, seq_len=16)


def test_the_same_text_twice_is_rejected(tmp_path, many, tokenizer):
    twin = tmp_path / "twin.jsonl"
    twin.write_bytes(Path(many).read_bytes())
    with pytest.raises(CalibrationError, match=r"twin.jsonl: is the same text as .*many.jsonl.* weight 3"):
        build_windows([f"{many}=2", str(twin)], tokenizer, n_samples=1, seq_len=8)


@pytest.mark.parametrize(("n_samples", "seq_len", "start"), [(0, 8, None), (1, 0, None), (1, 1, 0)])
def test_sizes_below_one_are_rejected_with_their_numbers(tokenizer, n_samples, seq_len, start):
    with pytest.raises(ValueError, match=f"n_samples={n_samples}, seq_len={seq_len}"):
        build_windows(["default"], tokenizer, n_samples=n_samples, seq_len=seq_len, start_token=start)
    with pytest.raises(ValueError, match="0 sources"):
        build_windows([], tokenizer, n_samples=1, seq_len=8)


@pytest.mark.parametrize("start", [None, 0])
def test_every_token_has_the_number_of_its_document(tokenizer, many, start):
    built = build_windows([many], tokenizer, n_samples=6, seq_len=31, start_token=start)
    assert built.documents is not None and built.documents.shape == built.ids.shape
    skipped = 0 if start is None else 1
    ids, documents = built.ids[:, skipped:].flatten(), built.documents[:, skipped:].flatten()
    assert len(built.names) == built.manifest["sources"][0]["documents"] == len(documents.unique())
    assert documents.diff().min() == 0 and documents.diff().max() == 1
    texts = {document.source: document.text for document in load_documents(str(many))}
    for index, name in enumerate(built.names):
        text = tokenizer.decode(ids[documents == index].tolist(), skip_special_tokens=True)
        assert texts[name].startswith(text)

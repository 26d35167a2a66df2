"""Token ids of an imported file are those of the original, or the file is refused or the user is warned."""

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from compress.checkpoint.gguf.importer import import_gguf
from compress.checkpoint.gguf.splits import NAMES, SPLITS
from compress.checkpoint.gguf.tokenizer import SAMPLE
from compress.core.errors import QCompressError

LINES = [*SAMPLE, "a  b\t\n\n c 12345678 x=1;", "<|end|>hi<|end|> <|endoftext|>", "I'd WE'LL it's 3.14²", ""]
SPECIAL = ["<unk>", "<s>", "<|end|>"]
DIGITS = "digits"
ORIGINAL = {  # name in the file: how the original splits, whether a known word stays whole, NFC, bos
    "llama-bpe": (GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"], True, False, True),
    "smaug-bpe": (GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"], False, False, False),
    "qwen2": (GGUF_PRE_TOKENIZER_SPLITS["qwen2"], False, True, False),
    "stablelm2": (GGUF_PRE_TOKENIZER_SPLITS["qwen2"], False, False, False),
    "tekken": (GGUF_PRE_TOKENIZER_SPLITS["tekken"], True, False, True),
    "gpt-4o": (GGUF_PRE_TOKENIZER_SPLITS["gpt-4o"], False, False, False),
    "gpt-2": (None, False, False, False),
    "starcoder": (DIGITS, False, False, False),
}


def byte_level(name):
    """A byte-level tokenizer trained on the sample with the splitting rule that a name stands for."""
    split, whole, nfc, _ = ORIGINAL[name]
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in (None, DIGITS))
    digits = pre_tokenizers.Digits(individual_digits=True)
    first = {None: [], DIGITS: [digits]}.get(split, [pre_tokenizers.Split(Regex(split or ""), behavior="isolated")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, level])
    tokenizer.normalizer = normalizers.NFC() if nfc else None
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator([*SAMPLE, "12 123 1234 2025 1999 " * 3], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|end|>", unk_token="<unk>")


def with_vocabulary(make_spec, original, **keys):
    """A llama file with the vocabulary of a tokenizer."""
    state = json.loads(original.backend_tokenizer.to_str())["model"]
    vocabulary = sorted(original.get_vocab(), key=original.get_vocab().get)
    _, spec = make_spec("llama", vocab_size=len(vocabulary) + 3)
    spec.metadata |= {
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in vocabulary],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in state["merges"]],
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
    }
    spec.metadata = {key: value for key, value in (spec.metadata | keys).items() if value is not None}
    return spec


def import_tokenizer(spec, tmp_path, **settings):
    row = import_gguf(spec.write(tmp_path / "model.gguf"), tmp_path / "out", **settings)
    return AutoTokenizer.from_pretrained(tmp_path / "out"), row


@pytest.mark.parametrize("name", ORIGINAL)
def test_every_line_has_the_ids_of_the_original(make_spec, tmp_path, name):
    original, adds_bos = byte_level(name), ORIGINAL[name][3]
    spec = with_vocabulary(make_spec, original, **{"tokenizer.ggml.pre": name, "tokenizer.ggml.add_bos_token": None})
    imported, row = import_tokenizer(spec, tmp_path)
    for line in LINES:
        expected = original.encode(line, add_special_tokens=False)
        assert imported.encode(line) == ([1] if adds_bos else []) + expected, line
        assert imported.decode(expected) == original.decode(expected)
    assert max(imported.get_vocab().values()) < spec.tensors["token_embd.weight"].shape[0] and "warning" not in row


def test_special_and_added_tokens_of_other_letters_keep_their_ids(make_spec, tmp_path):
    original = byte_level("stablelm2")
    original.add_special_tokens({"additional_special_tokens": ["<｜User｜>"]})
    original.add_tokens(["  ", "ﬁ nal"])
    spec = with_vocabulary(make_spec, original, **{"tokenizer.ggml.pre": "deepseek-r1-qwen"})
    added, count = {"<｜User｜>": 3, "  ": 4, "ﬁ nal": 4}, len(spec.metadata["tokenizer.ggml.tokens"])
    spec.metadata["tokenizer.ggml.token_type"][-3:] = [
        added[token] for token in spec.metadata["tokenizer.ggml.tokens"][-3:]
    ]
    spec.metadata["tokenizer.ggml.eos_token_id"] = original.convert_tokens_to_ids("<｜User｜>")
    imported, _ = import_tokenizer(spec, tmp_path)
    for line in (*LINES, "a<｜User｜>b", "x  y", "the ﬁ nal", "<｜User｜>  ﬁ nal"):
        assert imported.encode(line) == original.encode(line), line
    assert imported.eos_token == "<｜User｜>" and max(imported.get_vocab().values()) < count
    assert imported.decode(original.encode("a<｜User｜>b"), skip_special_tokens=True) == "ab"


@pytest.mark.parametrize(("name", "whole"), [("llama-bpe", True), ("tekken", True), ("smaug-bpe", False)])
def test_a_word_without_merges_stays_whole_where_it_does_in_the_original(make_spec, tmp_path, name, whole):
    state = json.loads(byte_level(name).backend_tokenizer.to_str())
    word = state["model"]["vocab"]["Ġzyzzyva"] = len(state["model"]["vocab"])
    original = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token="<s>")
    spec = with_vocabulary(make_spec, original, **{"tokenizer.ggml.pre": name})
    imported, _ = import_tokenizer(spec, tmp_path)
    assert imported.encode("a zyzzyva b") == original.encode("a zyzzyva b")
    assert (word in imported.encode("a zyzzyva b")) is whole


def test_smollm_splits_each_digit_of_a_number(make_spec, tmp_path):
    original = byte_level("starcoder")
    spec = with_vocabulary(make_spec, original, **{"tokenizer.ggml.pre": "smollm"})
    imported, row = import_tokenizer(spec, tmp_path)
    for line in (*SAMPLE, "x  1", "10²", "in 2026"):
        assert imported.encode(line) == original.encode(line)
    assert "warning" not in row


def test_every_name_has_a_rule_and_the_splits_are_those_of_transformers():
    assert {rule.split for rule in NAMES.values()} == set(SPLITS)
    for name in NAMES.keys() & GGUF_PRE_TOKENIZER_SPLITS.keys():
        theirs, ours = (Tokenizer(models.BPE()), Tokenizer(models.BPE()))
        pairs = ((theirs, GGUF_PRE_TOKENIZER_SPLITS[name]), (ours, SPLITS[NAMES[name].split]))
        for tokenizer, pattern in pairs:
            tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        for line in LINES:
            assert ours.pre_tokenizer.pre_tokenize_str(line) == theirs.pre_tokenizer.pre_tokenize_str(line), name


def test_an_unknown_rule_is_refused_and_an_absent_one_is_a_warning(make_spec, tmp_path):
    original = byte_level("gpt-2")
    spec = with_vocabulary(make_spec, original, **{"tokenizer.ggml.pre": "my-split"})
    with pytest.raises(
        QCompressError, match=r"pre is 'my-split', an unknown rule for splitting text; .* with --tokenizer FOLDER"
    ):
        import_tokenizer(spec, tmp_path)
    for number, name in enumerate((None, "default")):
        (tmp_path / str(number)).mkdir()
        spec = with_vocabulary(make_spec, original, **{"tokenizer.ggml.pre": name})
        assert "may differ" in import_tokenizer(spec, tmp_path / str(number))[1]["warning"]


@pytest.mark.parametrize(("name", "equal"), [("qwen2", "6/6"), ("gpt-2", "0/6"), ("my-split", None), (None, "0/6")])
def test_the_originals_tokenizer_is_compared_and_written(make_spec, tmp_path, name, equal):
    original = byte_level("qwen2")
    original.chat_template = "{{ messages[0] }}"
    original.save_pretrained(tmp_path / "original")
    spec = with_vocabulary(make_spec, original, **{"tokenizer.ggml.pre": name})
    imported, row = import_tokenizer(spec, tmp_path, tokenizer=tmp_path / "original")
    assert [imported.encode(line) for line in LINES] == [original.encode(line) for line in LINES]
    found = row.get("sample_lines_equal")
    assert (found == equal or (equal == "0/6" and found != "6/6")) and imported.chat_template == "{{ messages[0] }}"


def test_the_tokenizer_of_another_model_is_refused(make_spec, tmp_path):
    byte_level("qwen2").save_pretrained(tmp_path / "other")
    spec = with_vocabulary(make_spec, byte_level("gpt-2"))
    with pytest.raises(
        QCompressError, match=r"other: token \d+ is '.*', but '.*' in .*model\.gguf; give the tokenizer of"
    ):
        import_tokenizer(spec, tmp_path, tokenizer=tmp_path / "other")
    with pytest.raises(QCompressError, match=r"nothing: has no tokenizer\.json"):
        import_tokenizer(spec, tmp_path, tokenizer=tmp_path / "nothing")


def test_files_beside_the_model_do_not_change_its_tokenizer(make_spec, tmp_path):
    spec = with_vocabulary(make_spec, byte_level("gpt-2"))
    byte_level("qwen2").save_pretrained(tmp_path)
    imported, _ = import_tokenizer(spec, tmp_path)
    assert [imported.encode(line) for line in LINES] == [byte_level("gpt-2").encode(line) for line in LINES]


def piece_vocabulary(special):
    """Pieces and merges of a SentencePiece-like BPE, trained on the sample."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    first = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=len(first) + 700, special_tokens=first, min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return state["vocab"], [tuple(pair) for pair in state["merges"]]


def pieces_spec(make_spec, vocabulary, architecture="llama", **keys):
    tokens = sorted(vocabulary, key=vocabulary.get)
    settings = {"tie_word_embeddings": True, "head_dim": 16} if architecture == "gemma3" else {}
    _, spec = make_spec(architecture, vocab_size=len(tokens), **settings)
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3, "<pad>": 3, "<bos>": 3, "<eos>": 3}
    spec.metadata |= {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [kinds.get(token, 6 if token.startswith("<0x") else 1) for token in tokens],
        "tokenizer.ggml.scores": [-float(index) for index in range(len(tokens))],
        "tokenizer.ggml.eos_token_id": 2,
    }
    drop = ("tokenizer.ggml.merges", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.padding_token_id")
    spec.metadata = {key: value for key, value in spec.metadata.items() if key not in drop} | keys
    return spec


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_keeps_its_start_token_and_its_prefix_space(make_spec, tmp_path, prefix):
    vocabulary, merges = piece_vocabulary(["<unk>", "<s>", "</s>"])
    original = LlamaTokenizer(vocab=vocabulary, merges=merges, add_prefix_space=prefix)
    spec = pieces_spec(make_spec, vocabulary, **{"tokenizer.ggml.add_space_prefix": prefix})
    imported, _ = import_tokenizer(spec, tmp_path)
    for line in SAMPLE:
        ids = original.encode(line, add_special_tokens=False)
        assert imported.encode(line) == [1, *ids]
        assert imported.decode(ids) == original.decode(ids)


def test_gemma_has_the_ids_of_its_tokenizer_and_a_warning(make_spec, tmp_path):
    vocabulary, merges = piece_vocabulary(["<pad>", "<eos>", "<bos>", "<unk>"])
    original = GemmaTokenizer(vocab=vocabulary, merges=merges)
    keys = {"tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.unknown_token_id": 3}
    spec = pieces_spec(make_spec, vocabulary, "gemma3", **keys, **{"tokenizer.ggml.add_space_prefix": False})
    spec.set(attention__key_length=16)
    imported, row = import_tokenizer(spec, tmp_path)
    assert [imported.encode(line) for line in SAMPLE] == [
        [2, *original.encode(line, add_special_tokens=False)] for line in SAMPLE
    ]
    assert "merges follow from the order of tokens" in row["warning"]


def test_a_vocabulary_that_falls_into_characters_is_refused(make_spec, tmp_path):
    vocabulary, _ = piece_vocabulary(["<unk>", "<s>", "</s>"])
    spec = pieces_spec(make_spec, vocabulary, **{"tokenizer.ggml.merges": ["e n"]})
    with pytest.raises(QCompressError, match=r"only \d+ of \d+ sampled tokens encode to themselves"):
        import_tokenizer(spec, tmp_path)


DAMAGE = {
    "a token twice": ({"tokenizer.ggml.tokens": ["a"] * 128}, "tokens has 'a' twice"),
    "too many tokens": (
        {"tokenizer.ggml.tokens": [f"t{i}" for i in range(129)]},
        "129 tokens, but token_embd.weight has 128",
    ),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "has no list tokenizer.ggml.tokens"),
    "another kind": ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert', not gpt2 or llama"),
    "no merges": ({"tokenizer.ggml.merges": None}, "has no tokenizer.ggml.merges"),
    "a merge of one": ({"tokenizer.ggml.merges": ["t h", "x"]}, "merges[1] is 'x', not two tokens"),
    "a merge to nothing": ({"tokenizer.ggml.merges": ["q z"]}, "merges[0] is 'q z', not two tokens"),
    "few types": ({"tokenizer.ggml.token_type": [1, 1]}, "token_type is not one number for each of 128 tokens"),
    "a special token beyond": ({"tokenizer.ggml.eos_token_id": 128}, "eos_token_id is 128, not one of 128 tokens"),
    "a start without its id": (
        {"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.add_bos_token": True},
        "add_bos_token is true, but bos_token_id is missing",
    ),
    "suppressed tokens": ({"tokenizer.ggml.suppress_tokens": [1, 2]}, "has tokenizer.ggml.suppress_tokens: supp"),
    "an unknown key": ({"tokenizer.ggml.magic": True}, "tokenizer.ggml.magic is True: this key is unknown"),
    "lower case": ({"tokenizer.ggml.normalizer.lowercase": True}, "lowercase is True: lower-casing is not supported"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_vocabulary_is_refused_in_one_line(llama, tmp_path, name):
    changes, words = DAMAGE[name]
    llama.metadata = {key: value for key, value in (llama.metadata | changes).items() if value is not None}
    with pytest.raises(QCompressError) as error:
        import_gguf(llama.write(tmp_path / "model.gguf"), tmp_path / "out")
    assert words in error.value.message and "\n" not in error.value.message

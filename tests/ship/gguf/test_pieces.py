import json
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from compress.checkpoint.gguf.tokenizer import SAMPLE
from compress.ship.gguf.pieces import find_way, llama_cpp_ids
from compress.ship.gguf.tokens import differences, export_tokens
from tests.ship.gguf.conftest import FORMS


@pytest.fixture
def folder(tmp_path, tiny_llama):
    (tmp_path / "tokenizer.json").write_bytes((tiny_llama / "tokenizer.json").read_bytes())
    return tmp_path


def loaded(state):
    special = {"bos_token": "<s>", "unk_token": state["model"]["unk_token"]}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **special)


def exported(state):
    size = SimpleNamespace(vocab_size=len(state["model"]["vocab"]))
    values = export_tokens(loaded(state), size)
    return {key.removeprefix("tokenizer.ggml."): value for key, value in values.items()}


@pytest.fixture
def make_state(folder, write_pieces):
    def make(form, size=900):
        write_pieces(folder, form, size)
        return json.loads((folder / "tokenizer.json").read_text())

    return make


@pytest.mark.parametrize("form", FORMS)
def test_joining_the_best_neighbours_gives_the_ids_of_the_merges(make_state, form):
    state = make_state(form)
    values, tokenizer = exported(state), loaded(state)
    for line in (*SAMPLE, "a  b\t\n\n c 12345678 x=1;", "ﷺ\U0001f9ff"):
        assert llama_cpp_ids(values, line) == tokenizer.encode(line)
    assert values["model"] == "llama" and values["add_space_prefix"] is (form in ("llama 2", "mistral"))


def test_every_byte_and_the_unknown_token_have_their_types(make_state):
    values = exported(make_state("gemma"))
    types = dict(zip(values["tokens"], values["token_type"], strict=True))
    assert types["<0x00>"] == types["<0xFF>"] == 6 and sum(kind == 6 for kind in types.values()) == 256
    assert list(types.values()).count(2) == 1 and types["<s>"] == 3 and types["th"] == 1


def test_an_added_run_of_spaces_that_merges_form_is_a_normal_token(make_state):
    state = make_state("gemma")
    state["model"]["vocab"]["▁▁"] = len(state["model"]["vocab"])
    state["model"]["merges"].append(["▁", "▁"])
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    added = [{"id": state["model"]["vocab"][text], "content": text} | token for text in ("▁▁", "th")]
    state["added_tokens"] = sorted(state["added_tokens"] + added, key=lambda one: one["id"])
    types = dict(zip(*(exported(state)[key] for key in ("tokens", "token_type")), strict=True))
    assert types["▁▁"] == 1 and types["th"] == 4


def test_merges_that_llama_cpp_would_not_follow_are_refused(make_state):
    state = make_state("gemma")
    merges = state["model"]["merges"]
    state["model"]["merges"] = merges[: len(merges) // 2]  # the tokens of the others stay
    with pytest.raises(ValueError, match=r"tokenizer\.json: llama\.cpp would give other token ids for"):
        exported(state)


def test_a_vocabulary_without_one_byte_is_refused(make_state):
    state = make_state("gemma")
    state["model"]["vocab"]["<0xzz>"] = state["model"]["vocab"].pop("<0x7F>")
    with pytest.raises(ValueError, match=r"lacks <0x7F>, and llama.cpp needs a token for each byte"):
        exported(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "NFKC"}}, r"with byte_fallback \(NFKC, Split\)"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, r"with byte_fallback \(Replace, Whitespace\)"),
        ({"normalizer": None, "pre_tokenizer": None}, r"with byte_fallback \(none\)"),
    ],
)
def test_another_way_to_prepare_text_is_refused_by_its_names(make_state, change, message):
    with pytest.raises(ValueError, match=message):
        exported(make_state("gemma") | change)


@pytest.mark.parametrize(("key", "value"), [("ignore_merges", True), ("dropout", 0.5)])
def test_a_setting_of_the_model_that_llama_cpp_lacks_is_refused(make_state, key, value):
    state = make_state("gemma")
    state["model"][key] = value
    with pytest.raises(ValueError, match=rf"model\.{key} is {value}"):
        exported(state)


def test_a_unigram_model_is_refused_by_its_name(make_state):
    state = make_state("gemma")
    state["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False}
    backend = SimpleNamespace(to_str=lambda: json.dumps(state))
    with pytest.raises(ValueError, match="Unigram models cannot be written as"):
        export_tokens(SimpleNamespace(backend_tokenizer=backend), SimpleNamespace(vocab_size=2))


def test_a_space_that_llama_cpp_adds_is_stated(make_state):
    state = make_state("mistral")
    values, tokenizer = exported(state), loaded(state)
    assert llama_cpp_ids(values, " the") != tokenizer.encode(" the")
    assert find_way(state)[1] in differences(tokenizer)[0]
    state = make_state("llama 2")
    values, tokenizer = exported(state), loaded(state)
    assert llama_cpp_ids(values, " the") == tokenizer.encode(" the") and differences(tokenizer) == []


def test_a_token_that_takes_the_blanks_around_it_is_stated(make_state):
    state = make_state("gemma")
    state["added_tokens"][1]["rstrip"] = True
    assert differences(loaded(state)) == [
        f"the token {state['added_tokens'][1]['content']} takes the blanks around it, which llama.cpp keeps"
    ]

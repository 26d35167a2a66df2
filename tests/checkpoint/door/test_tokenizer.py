"""The tokenizer and chat template of a checkpoint are usable, or refused in one line."""

import json
from pathlib import Path

import pytest

from calibration.chat import encode_text
from calibration.errors import CalibrationError
from compress.checkpoint.door.tokenizer import id_faults, template_fault
from compress.checkpoint.load import open_for_text
from tests.checkpoint.door.conftest import edit_config


def edit_json(file: Path, change) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def add_token(path: Path, index: int, content: str, *, special: bool) -> None:
    token = {"id": index, "content": content, "single_word": False, "lstrip": False, "rstrip": False}
    edit_json(
        path / "tokenizer.json",
        lambda value: value["added_tokens"].append(token | {"normalized": False, "special": special}),
    )


def set_pre_tokenizer(value) -> None:
    value["pre_tokenizer"] = {"type": "NoSuchKind"}


DAMAGES = {
    "an unknown pre-tokenizer": lambda file: edit_json(file, set_pre_tokenizer),
    "cut off": lambda file: file.write_text(file.read_text()[:2000]),
    "a Git LFS pointer": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "a byte order mark": lambda file: file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes()),
    "an empty object": lambda file: file.write_text("{}"),
    "a list": lambda file: file.write_text("[]"),
    "nothing": lambda file: file.write_text(""),
    "a vocabulary of text": lambda file: edit_json(file, lambda value: value["model"].update(vocab="abc")),
    "an id of -1": lambda file: edit_json(file, lambda value: value["model"]["vocab"].update({"a": -1})),
    "an id of 2^63": lambda file: edit_json(file, lambda value: value["model"]["vocab"].update({"a": 2**63})),
    "an id of 2^31": lambda file: edit_json(file, lambda value: value["model"]["vocab"].update({"a": 2**31})),
    "merges of numbers": lambda file: edit_json(file, lambda value: value["model"].update(merges=[1, 2])),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_tokenizer_that_cannot_be_used_is_refused(model, refused, name):
    DAMAGES[name](model / "tokenizer.json")
    refused(model, "tokenizer.json", text=True)


@pytest.mark.parametrize(
    "text", ["\ufeff{}", "[]", '{"bos_token": 3}', '{"tokenizer_class": 5}', "{", '{"model_max_length": "0"}']
)
def test_a_malformed_tokenizer_config_is_refused(model, refused, text):
    (model / "tokenizer_config.json").write_text(text, encoding="utf-8")
    refused(model, "tokenizer", text=True)


def test_code_in_the_folder_is_never_run_and_never_offered(model, refused, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    (model / "custom.py").write_text("raise SystemExit('it ran')")
    mapped = {"auto_map": {"AutoTokenizer": ["custom.Custom", None]}, "tokenizer_class": "Custom"}
    edit_json(model / "tokenizer_config.json", lambda value: value.update(mapped))
    for name in ("tokenizer.json",):
        (model / name).rename(model / "vocab.json")
    refused(model, text=True)


def test_tokens_beyond_the_embedding_are_refused(model, refused):
    add_token(model, 130, "<extra>", special=False)
    refused(model, "tokenizer.json", "'<extra>' has id 128", "128 rows", text=True)


def test_a_special_token_beyond_is_refused_only_if_something_writes_it(model, refused):
    add_token(model, 130, "<image>", special=True)
    tokenizer = open_for_text(model).tokenizer  # as in Gemma 3 1B
    assert encode_text(tokenizer, "a text")
    with pytest.raises(CalibrationError, match=r"contains the token '<image>' \(id 128\), but the model has only 128"):
        encode_text(tokenizer, "an <image> in a text")
    (model / "chat_template.jinja").write_text("<image>{{ messages[0].content }}")
    refused(model, "'<image>' has id 128", text=True)


def test_an_end_token_beyond_the_embedding_is_refused(model, refused):
    add_token(model, 131, "<end>", special=True)
    edit_json(model / "tokenizer_config.json", lambda value: value.update(eos_token="<end>"))
    refused(model, "'<end>' has id 128", text=True)


def test_ids_can_be_checked_without_a_tokenizer():
    vocabulary = {"a": 0, "b": 5, "<s>": 7}
    assert [fault.text for fault in id_faults(vocabulary, 6, {"<s>": True}, [], "")] == []
    assert len(list(id_faults(vocabulary, 6, {"<s>": True}, [7], ""))) == 1
    assert len(list(id_faults(vocabulary, 5, {"<s>": True}, [], ""))) == 1
    assert len(list(id_faults({"a": -1}, 5, {}, [], ""))) == 1


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}", "not valid Jinja"),
        ("{{ messages[ }}", "not valid Jinja"),
        (3, "int"),
    ],
)
def test_a_template_that_cannot_be_compiled_is_named(template, words):
    assert words in template_fault(template)


def test_a_broken_chat_template_is_refused(model, refused):
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}")
    refused(model, "chat_template.jinja", "not valid Jinja", text=True)
    (model / "chat_template.jinja").write_bytes(b"\xff\xfe")
    refused(model, "chat_template.jinja", text=True)


def test_a_padded_vocabulary_passes(model):
    edit_config(model)
    assert open_for_text(model).vocabulary_rows == 128

"""A tokenizer is checked without transformers only if transformers builds it."""

import json

import pytest

from compress.checkpoint.door.familiar_tokenizer import is_familiar_tokenizer
from compress.checkpoint.door.tokenizer import check_tokenizer, load_tokenizer, template_fault
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError


def is_familiar(folder, rows=None) -> bool:
    rows = rows or Checkpoint(folder).vocabulary_rows
    return is_familiar_tokenizer(folder, rows, lambda text: template_fault(text) is None)


def edit_settings(folder, **values) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_the_tokenizer_of_a_checkpoint_is_familiar(model):
    assert is_familiar(model) and len(load_tokenizer(model, None)) > 0


UNFAMILIAR = {
    "another class": {"tokenizer_class": "BertTokenizer"},
    "no class": {"tokenizer_class": None},
    "an unknown key": {"custom_decoder": 1},
    "a special token outside of the vocabulary": {"eos_token": "<no such token>"},
    "a special token as a number": {"pad_token": 3},
    "an added token with another id": {"added_tokens_decoder": {"5": {"content": "<|im_end|>"}}},
    "a length as text": {"model_max_length": "0"},
    "a flag as text": {"add_bos_token": "yes"},
    "a template that is not valid Jinja": {"chat_template": "{% if"},
    "several templates": {"chat_template": [{"name": "default", "template": "x"}]},
}


@pytest.mark.parametrize("change", UNFAMILIAR)
def test_other_settings_are_left_to_transformers(model, change):
    edit_settings(model, **UNFAMILIAR[change])
    assert not is_familiar(model)


def test_an_id_without_a_row_is_left_to_transformers(model):
    size = max(load_tokenizer(model, None).get_vocab().values()) + 1
    assert is_familiar(model, size) and not is_familiar(model, size - 1)
    with pytest.raises(QCompressError, match="rows"):
        check_tokenizer(model, size - 1)


@pytest.mark.parametrize("file", ["vocab.json", "added_tokens.json", "special_tokens_map.json"])
def test_an_older_file_with_another_token_is_left_to_transformers(model, file):
    (model / file).write_text(json.dumps({"<no such token>": 3} if "map" not in file else {"eos_token": "<none>"}))
    assert not is_familiar(model)


def test_a_folder_without_a_tokenizer_is_refused(model):
    (model / "tokenizer.json").unlink()
    with pytest.raises(QCompressError, match="tokenizer"):
        check_tokenizer(model, 64)

"""Recognize familiar tokenizers: those that transformers can build without doubt, so that it need not be imported.

A familiar tokenizer has only classes, keys and files that published tokenizers of the known families have. Any other
tokenizer is built by transformers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.checkpoint.door.files import (
    ADDED,
    SETTINGS,
    SPECIAL_MAP,
    TEMPLATE,
    TOKENIZER,
    VOCABULARY,
    read_json,
    read_utf8,
)

TOKENIZER_CLASSES = frozenset(
    {
        *("PreTrainedTokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast"),
        *("Qwen2Tokenizer", "Qwen2TokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast"),
    }
)
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
FLAGS = (
    *("add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces", "split_special_tokens"),
    *("is_local", "legacy", "spaces_between_special_tokens", "use_default_system_prompt", "local_files_only"),
)
TEXTS = ("padding_side", "truncation_side", "errors", "backend", "name_or_path")


def is_familiar_tokenizer(folder: Path, rows: int, is_template: Callable[[Any], bool]) -> bool:
    """Whether the tokenizer in `folder` is familiar, and all its ids are below `rows`.

    `is_template` returns whether a chat template is valid. The JSON files of the folder must be readable.
    """
    from tokenizers import Tokenizer

    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    if not (folder / TOKENIZER).is_file() or settings.get("tokenizer_class") not in TOKENIZER_CLASSES:
        return False
    try:
        backend = Tokenizer.from_file(str(folder / TOKENIZER))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # the library raises plain Exception, and a panic is no Exception
        return False  # transformers says why
    ids = backend.get_vocab(with_added_tokens=True)
    if not ids or not all(0 <= index < rows for index in ids.values()) or len({*ids.values()}) != len(ids):
        return False
    settled = has_familiar_settings(settings, ids) and has_familiar_files(folder, ids)
    return settled and is_bpe(folder, settings) and all(map(is_template, templates(folder, settings)))


def is_bpe(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the tokenizer is a BPE model, which every class can build, or has a class that can build any model."""
    model = read_json(folder / TOKENIZER).get("model") or {}
    return settings["tokenizer_class"] == "PreTrainedTokenizerFast" or model.get("type") == "BPE"


def has_familiar_settings(settings: dict[str, Any], ids: dict[str, int]) -> bool:
    """Whether tokenizer_config.json has only familiar keys, and only special tokens of the vocabulary."""
    return all(is_familiar(key, value, ids) for key, value in settings.items())


def is_familiar(key: str, value: Any, ids: dict[str, int]) -> bool:
    """Whether a key of tokenizer_config.json is familiar and has a value of the right type."""
    if key in ROLES:
        return value is None or is_known_token(value, ids)
    if key in LISTS:
        return isinstance(value, list) and all(is_known_token(token, ids) for token in value)
    if key == "added_tokens_decoder":
        return isinstance(value, dict) and all(matches_id(number, token, ids) for number, token in value.items())
    if key == "model_max_length":
        return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    if key in ("tokenizer_class", "chat_template"):
        return isinstance(value, str)
    if key in FLAGS:
        return value is None or isinstance(value, bool)
    return key in TEXTS and isinstance(value, str)


def is_known_token(value: Any, ids: dict[str, int]) -> bool:
    """Whether a special token, stored as text or as an object with `content`, is in the vocabulary."""
    text = value.get("content") if isinstance(value, dict) else value
    return isinstance(text, str) and text in ids


def matches_id(number: str, token: Any, ids: dict[str, int]) -> bool:
    """Whether an entry of added_tokens_decoder has the id of its token in the vocabulary."""
    text = token.get("content") if isinstance(token, dict) else None
    return isinstance(text, str) and number.isascii() and number.isdecimal() and ids.get(text) == int(number)


def has_familiar_files(folder: Path, ids: dict[str, int]) -> bool:
    """Whether the older files beside tokenizer.json add no tokens to it."""
    specials = read_json(folder / SPECIAL_MAP) if (folder / SPECIAL_MAP).is_file() else {}
    lists = [value if isinstance(value, list) else [value] for value in specials.values()]
    added = read_json(folder / ADDED) if (folder / ADDED).is_file() else {}
    vocabulary = read_json(folder / VOCABULARY) if (folder / VOCABULARY).is_file() else {}
    same = all(ids.get(token) == index for token, index in (*added.items(), *vocabulary.items()))
    return same and all(is_known_token(token, ids) for tokens in lists for token in tokens)


def templates(folder: Path, settings: dict[str, Any]) -> list[Any]:
    """The chat templates of a folder."""
    file = folder / TEMPLATE
    stored = [settings["chat_template"]] if "chat_template" in settings else []
    return [*stored, *([read_utf8(file)] if file.is_file() else [])]

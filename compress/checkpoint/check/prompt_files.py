"""The files that turn a conversation into token ids: tokenizer, special tokens, chat template, generation_config.

They are read here for the P rules, from the files alone: no code of a checkpoint runs, and transformers adds nothing.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from compress.checkpoint.door.files import (
    ADDED,
    GENERATION,
    MERGES,
    SETTINGS,
    SPECIAL_MAP,
    TEMPLATE,
    TOKENIZER,
    VOCABULARY,
    read_json,
    read_utf8,
)
from compress.checkpoint.door.tokenizer import check_ids
from compress.core.errors import QCompressError

TEMPLATE_JSON = "chat_template.json"
JSON_FILES = (TOKENIZER, SETTINGS, SPECIAL_MAP, ADDED, VOCABULARY, GENERATION, TEMPLATE_JSON)
TEXT_FILES = (TEMPLATE, MERGES)
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class PromptFiles:
    """The prompt files of a folder, each read at first use. Raises QCompressError if that file is malformed."""

    folder: Path
    contents: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def read(self, name: str) -> dict[str, Any]:
        """The object in a JSON file, which is read once; {} if there is no such file."""
        if name not in self.contents:
            self.contents[name] = read_json(self.folder / name) if self.has(name) else {}
        return self.contents[name]

    def text(self, name: str) -> str | None:
        """The text of a file; None if there is no such file. Raises QCompressError unless it is UTF-8."""
        return read_utf8(self.folder / name) if self.has(name) else None

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        """The content of tokenizer.json; {} without one."""
        return self.read(TOKENIZER)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The content of tokenizer_config.json; {} without one."""
        return self.read(SETTINGS)

    @cached_property
    def generation(self) -> dict[str, Any]:
        """The content of generation_config.json; {} without one."""
        return self.read(GENERATION)

    @cached_property
    def backend(self) -> Tokenizer | None:
        """The tokenizer as every runtime builds it; None without tokenizer.json."""
        if not self.has(TOKENIZER):
            return None
        content = self.read(TOKENIZER)  # a pointer of Git LFS, damaged text and a file that is too large fail here
        check_ids(self.folder / TOKENIZER, content)
        return build_tokenizer(self.folder / TOKENIZER)

    @cached_property
    def ids(self) -> dict[str, int]:
        """{token: id} of vocabulary and added tokens; {} without tokenizer.json."""
        return self.backend.get_vocab(with_added_tokens=True) if self.backend else {}

    @cached_property
    def specials(self) -> dict[str, str]:
        """{role: token} of the special tokens, from tokenizer_config.json, else from special_tokens_map.json."""
        tokens = {role: token_text(self.settings.get(role)) for role in ROLES}
        older = self.read(SPECIAL_MAP) if self.has(SPECIAL_MAP) else {}
        tokens = {role: token or token_text(older.get(role)) for role, token in tokens.items()}
        return {role: token for role, token in tokens.items() if token}

    @cached_property
    def template(self) -> str | None:
        """The chat template that runtimes use: the file if there is one, else that of tokenizer_config.json."""
        text = self.text(TEMPLATE)
        if text is not None:
            return text
        value = self.settings.get("chat_template")
        if value is None and self.has(TEMPLATE_JSON):
            value = self.read(TEMPLATE_JSON).get("chat_template")
        if isinstance(value, list):  # several templates, by name
            named = {one.get("name"): one.get("template") for one in value if isinstance(one, dict)}
            value = named.get("default")
        return value if isinstance(value, str) else None


def token_text(value: Any) -> str | None:
    """The text of a special token, which is stored as a string or as an object with `content`."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def build_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json. Raises QCompressError if the tokenizers library cannot build it."""
    try:
        return Tokenizer.from_file(str(file))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as problem:  # the library raises plain Exception, and a panic is no Exception
        reason = " ".join(str(problem).split())[:160]
        raise QCompressError(
            f"{file}: the tokenizers library cannot load it ({reason}); fetch the file again"
        ) from None


def merge_pairs(merges: Any) -> list[tuple[str, str]]:
    """The merges of a BPE model as pairs; they are stored as "a b" or as [a, b]."""
    pairs = []
    for merge in merges if isinstance(merges, list) else ():
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts):
            pairs.append((parts[0], parts[1]))
    return pairs


def merge_lines(text: str) -> list[str]:
    """The merges in a merges.txt, without its version line."""
    return [line for line in text.split("\n") if line and not line.startswith("#version")]


def canonical(value: Any) -> str:
    """A JSON value as text that does not depend on its formatting."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)

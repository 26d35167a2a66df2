"""Load and check the tokenizer and chat template of a checkpoint: no token id may lie beyond the embedding.

Code in the folder is never run. `id_faults` works on the ids alone, so that the validator can use it too.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.bounded import bounded
from compress.checkpoint.door.familiar_tokenizer import is_familiar_tokenizer
from compress.checkpoint.door.fault import Fault, Faults, refuse
from compress.checkpoint.door.files import (
    ADDED,
    GENERATION,
    PIECES,
    SETTINGS,
    SPECIAL_MAP,
    TEMPLATE,
    TOKENIZER,
    VOCABULARY,
    check_regular,
    read_json,
    read_utf8,
)
from compress.core.errors import QCompressError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARIES = (TOKENIZER, PIECES, VOCABULARY)
JSON_FILES = (TOKENIZER, SETTINGS, SPECIAL_MAP, ADDED, VOCABULARY, GENERATION)
MAX_TEMPLATE = 1_000_000
MAX_ID = 2**24  # no vocabulary is larger, and the tokenizers library walks through all ids below the largest one
ROLES = ("bos_token_id", "eos_token_id", "unk_token_id")  # tokens that are put into texts without being in them
CURE = "fetch the tokenizer files again, or use those of the model it was made from"


def load_tokenizer(folder: Path, rows: int | None) -> "PreTrainedTokenizerBase":
    """The tokenizer in a folder, for an embedding of `rows` rows. If `rows` is None, ids are not checked.

    Raises QCompressError if a file is missing or malformed, if the chat template is not valid Jinja, or if the
    tokenizer can return ids that have no row.
    """
    if not has_tokenizer(folder):
        raise QCompressError(f"{folder}: no tokenizer.json; copy the model's tokenizer files there")
    check_files(folder)
    tokenizer = build(folder)
    check_template(folder, tokenizer)
    if rows is not None:
        refuse(folder, tokenizer_faults(tokenizer, rows))
        tokenizer.embedding_rows = rows  # read by calibration.chat.encode_text
    return tokenizer


def check_tokenizer(folder: Path, rows: int | None) -> None:
    """Raises QCompressError if `load_tokenizer` does. A familiar tokenizer is checked without transformers."""
    if has_tokenizer(folder) and rows is not None:
        check_files(folder)
        if is_familiar_tokenizer(folder, rows, lambda text: template_fault(text) is None):
            return
    load_tokenizer(folder, rows)


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder has a file with a vocabulary."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def check_files(folder: Path) -> None:
    """Raises QCompressError for a tokenizer file that is not regular, not valid JSON, too large, or has a huge id."""
    for name in JSON_FILES:
        if (folder / name).exists():
            check_ids(folder / name, read_json(folder / name))
    if (folder / TEMPLATE).exists():
        check_regular(folder / TEMPLATE)
        read_utf8(folder / TEMPLATE, MAX_TEMPLATE)


def check_ids(file: Path, content: Mapping[str, Any]) -> None:
    """Raises QCompressError for a token id of MAX_ID or more in a tokenizer file, before a tokenizer is built."""
    for token, index in listed_ids(file.name, content):
        if isinstance(index, int) and index >= MAX_ID:
            raise QCompressError(f"{file}: token {token!r:.60} has id {index:,}; no vocabulary is that large; {CURE}")


def listed_ids(name: str, content: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Pairs of token and id in tokenizer.json, vocab.json or added_tokens.json, whatever their types."""
    if name in (VOCABULARY, ADDED):
        yield from content.items()
    if name == TOKENIZER:
        model, added = content.get("model"), content.get("added_tokens")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        yield from vocabulary.items() if isinstance(vocabulary, dict) else ()
        rows = added if isinstance(added, list) else ()
        yield from ((row.get("content"), row.get("id")) for row in rows if isinstance(row, dict))


def build(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer as transformers builds it. Raises QCompressError if transformers fails for any reason."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer.decode(tokenizer("a text of a few words")["input_ids"])  # some wrong settings fail at first use
        return tokenizer
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of the Rust library is not an Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    file = TOKENIZER if (folder / TOKENIZER).is_file() else ""
    raise QCompressError(f"{folder / file}: transformers cannot build the tokenizer ({reason}); {CURE}")


def check_template(folder: Path, tokenizer: Any) -> None:
    """Raises QCompressError for a chat template that is not valid Jinja, or too expensive to compile."""
    template = getattr(tokenizer, "chat_template", None)
    named = template if isinstance(template, dict) else {"": template}
    for name, text in named.items():
        if text is None:
            continue
        fault = template_fault(text)
        if fault:
            where = folder / (TEMPLATE if (folder / TEMPLATE).is_file() else SETTINGS)
            label = f"chat template {name!r}" if name else "the chat template"
            raise QCompressError(f"{where}: {label} {fault}; correct it, or fetch the file again")


def template_fault(text: Any) -> str | None:
    """Why a chat template cannot be compiled, or None. Memory is limited, because Jinja computes constants in it."""
    from compress.checkpoint.door.template import compile_template

    if not isinstance(text, str):
        return f"is not text but {type(text).__name__}"
    try:
        with bounded():
            compile_template(text)
    except MemoryError:
        return "needs too much memory"
    except Exception as error:
        line = getattr(error, "lineno", None)
        return f"is not valid Jinja ({' '.join(str(error).split())[:200]}{f', line {line}' if line else ''})"
    return None


def tokenizer_faults(tokenizer: Any, rows: int) -> Faults:
    """Tokens of a loaded tokenizer that have no row in an embedding of `rows` rows, and that texts can contain."""
    added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
    roles = [getattr(tokenizer, role, None) for role in ROLES]
    roles += [token for token in wrapped(tokenizer) if token >= rows]
    template = str(getattr(tokenizer, "chat_template", None) or "")
    yield from id_faults(tokenizer.get_vocab(), rows, added, roles, template)


def wrapped(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer puts around every text."""
    return list(tokenizer("")["input_ids"])


def id_faults(
    vocabulary: Mapping[str, int], rows: int, added: Mapping[str, bool], roles: list[Any], template: str
) -> Faults:
    """Tokens of `vocabulary` whose ids have no row in an embedding of `rows` rows.

    `added` maps added tokens to whether they are special. `roles` are the ids of tokens such as bos and eos. A special
    token without a row is allowed if it has no role and is not in the chat template: Gemma 3 1B is published with an
    image token that its embedding lacks.
    """
    for token, index in sorted(vocabulary.items(), key=lambda pair: pair[1]):
        if 0 <= index < rows:
            continue
        if index < 0 or index in roles or token in template or not added.get(token, False):
            text = f"token {token!r:.60} has id {index:,}, but the embedding has {rows:,} rows"
            yield Fault(TOKENIZER, "", text, "remove the token, or resize the embedding")

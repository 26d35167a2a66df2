"""One document: plain text, a conversation, or a conversation that can also be read as plain text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calibration.errors import CalibrationError
from calibration.files import check_length

KNOWN_KEYS = "`messages`, `text`, `prompt` with `response`, `instruction` with `output` (and `input`)"
PROMPT_KEYS = "`messages`, `prompt`, `instruction` (and `input`)"
COLUMNS = ("messages", "text", "prompt", "response", "instruction", "input", "output")
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Document:
    """A document with `text`, `messages` or both. With both, `messages` are used if the tokenizer has a chat template.

    `source` names the document in errors, such as "notes.jsonl: line 12".
    """

    source: str
    text: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None

    @property
    def is_empty(self) -> bool:
        parts = [self.text or ""] if self.messages is None else [message["content"] for message in self.messages]
        return not any(part.strip() for part in parts)


def row_document(row: Any, where: str) -> Document:
    """The document in one row of a .jsonl file, a .parquet file or a hub dataset.

    If a row has several of KNOWN_KEYS, the first in that order is used.
    Raises CalibrationError, beginning with `where`, if the row has no usable key or a value has the wrong type.
    """
    if not isinstance(row, Mapping):
        raise CalibrationError(
            f"{where}: the row is {type(row).__name__}, not an object with keys; known keys: {KNOWN_KEYS}"
        )
    present = {key for key in COLUMNS if row.get(key) is not None}
    if "messages" in present:
        return Document(where, messages=_messages(row["messages"], where))
    if "text" in present:
        return Document(where, text=_string(row, "text", where))
    if {"prompt", "response"} <= present:
        return _answered([_string(row, "prompt", where)], _string(row, "response", where), where)
    if {"instruction", "output"} <= present:
        question = [_string(row, "instruction", where)]
        question += [_string(row, "input", where)] if "input" in present else []
        return _answered(question, _string(row, "output", where), where)
    raise CalibrationError(f"{where}: no usable key in {sorted(map(str, row))}; known keys: {KNOWN_KEYS}")


def row_prompt(row: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """The prompt in a row: its messages, without assistant messages at the end.

    A row is a string, or an object with one of PROMPT_KEYS.
    Raises CalibrationError, beginning with `where`, for any other row.
    """
    row = {"prompt": row} if isinstance(row, str) else row
    if not isinstance(row, Mapping):
        raise CalibrationError(
            f"{where}: the row is {type(row).__name__}, not text or an object with keys; known keys: {PROMPT_KEYS}"
        )
    if row.get("messages") is not None:
        messages = list(_messages(row["messages"], where))
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if not messages:
            raise CalibrationError(f"{where}: all messages have the role assistant; add a user message")
        return tuple({"role": message["role"], "content": message["content"]} for message in messages)
    key = next((key for key in ("prompt", "instruction") if row.get(key) is not None), None)
    if key is None:
        raise CalibrationError(f"{where}: no usable key in {sorted(map(str, row))}; known keys: {PROMPT_KEYS}")
    parts = [_string(row, key, where)]
    parts += [_string(row, "input", where)] if key == "instruction" and row.get("input") is not None else []
    if not _joined(parts):
        raise CalibrationError(f"{where}: `{key}` is empty; remove the row")
    return ({"role": "user", "content": _joined(parts)},)


def _joined(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part.strip())


def _answered(question: list[str], answer: str, where: str) -> Document:
    prompt = _joined(question)
    messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Document(where, text=f"{prompt}\n\n{answer}", messages=messages)


def _messages(rows: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(rows, list) or not rows:
        raise CalibrationError(
            f"{where}: `messages` is {rows!r:.60}, but must be a list of objects with `role` and `content`"
        )
    for number, message in enumerate(rows, 1):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES:
            raise CalibrationError(f"{where}: message {number}: the role is {role!r}; known roles: {', '.join(ROLES)}")
        _string(message, "content", f"{where}: message {number}")
    return tuple(rows)


def _string(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise CalibrationError(f"{where}: `{key}` is {type(value).__name__}, not a string; convert it")
    return check_length(value, f"{where}: `{key}`")

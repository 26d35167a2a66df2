"""A suite: a .jsonl file with one item per line. And the table of the five kinds of task.

    {"id": "qa-en-01", "kind": "qa", "language": "en", "turns": ["…"], "expected": {…}}

Reading a suite checks all items. The bundled suite has one file per kind in `data/`; --suite replaces it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibration.errors import CalibrationError
from calibration.files import check_regular, parse_json, text_lines
from compress.core.errors import QCompressError
from compress.evaluate.tasks import conversation, json_schema, mathematics, python, questions
from compress.evaluate.tasks.item import Item, Kind

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (questions.KIND, python.KIND, mathematics.KIND, json_schema.KIND, conversation.KIND)
}
DATA = Path(__file__).parent / "data"
FIELDS = {"id": str, "kind": str, "language": str, "turns": list, "expected": dict}


@dataclass(frozen=True)
class Suite:
    """A suite's items, and a digest of all values that can change a score: items, instructions, token limits.

    `file` is None for the bundled suite.
    """

    name: str
    items: tuple[Item, ...]
    digest: str
    file: Path | None = None


def load_suite(file: Path | None = None) -> Suite:
    """The suite in `file`, or the bundled suite. Raises QCompressError, with file and line, if an item is malformed."""
    files = [file] if file else [DATA / f"{name}.jsonl" for name in KINDS]
    items: list[Item] = []
    for path in files:
        try:
            items += read_items(path, {item.id for item in items})
        except CalibrationError as error:
            raise QCompressError(str(error)) from None
    return Suite(file.name if file else "bundled", tuple(items), _digest(items), file)


def select(suite: Suite, kinds: Sequence[str] = (), limit: int | None = None) -> list[Item]:
    """The items of `kinds`, at most `limit` per kind, evenly spread over the suite. An empty `kinds` selects all kinds.

    Raises QCompressError if the suite has no items of one of the kinds.
    """
    chosen: list[Item] = []
    for kind in kinds or KINDS:
        items = [item for item in suite.items if item.kind == kind]
        if kinds and not items:
            raise QCompressError(f"suite {suite.name}: no item of kind {kind}; leave out --kind {kind}")
        count = min(limit or len(items), len(items))
        chosen += [items[index * len(items) // count] for index in range(count)]
    return chosen


def read_items(path: Path, taken: set[str]) -> list[Item]:
    """The items of one file. Ids must be unique and not in `taken`. Raises CalibrationError for an unreadable text."""
    check_regular(path)
    items: list[Item] = []
    for line, where in text_lines(path):
        item = _checked(line, where, taken)
        taken = taken | {item.id}
        items.append(item)
    if not items:
        raise QCompressError(f"{path}: no items; write one JSON object per line")
    return items


def _checked(line: str, where: str, taken: set[str]) -> Item:
    row = parse_json(line, where)
    try:
        item = parse_item(row)
        if item.id in taken:
            raise ValueError(f"id {item.id} occurs twice")
    except RecursionError:
        raise QCompressError(f"{where}: nested too deeply; correct or remove the line") from None
    except ValueError as error:
        raise QCompressError(f"{where}: {error}; correct or remove the line") from None
    return item


def parse_item(row: Any) -> Item:
    """The item of a row, checked by its kind. Raises ValueError, with the reason, if the row is malformed."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, not {type(row).__name__}")
    for field, expected in FIELDS.items():
        if not isinstance(row.get(field), expected):
            raise ValueError(f"{field} must be a {expected.__name__}" if field in row else f"{field} is missing")
    if unknown := row.keys() - FIELDS.keys():
        raise ValueError(f"unknown field {min(unknown)}; use {', '.join(FIELDS)}")
    if row["kind"] not in KINDS:
        raise ValueError(f"unknown kind {row['kind']}; use {', '.join(KINDS)}")
    if not row["turns"] or not all(isinstance(turn, str) and turn.strip() for turn in row["turns"]):
        raise ValueError("turns must be one or more texts that are not blank")
    item = Item(row["id"], row["kind"], row["language"], tuple(row["turns"]), row["expected"])
    KINDS[item.kind].check(item)
    return item


def _digest(items: Sequence[Item]) -> str:
    instructions = {
        name: [KINDS[name].max_tokens, dict(KINDS[name].instruction)] for name in {item.kind for item in items}
    }
    text = json.dumps([instructions, [asdict(item) for item in items]], sort_keys=True, ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

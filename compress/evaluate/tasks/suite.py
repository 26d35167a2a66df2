"""A suite: items in a .jsonl file, one a line, checked when they are read; and the five kinds as a table.

    {"id": "qa-en-01", "kind": "qa", "language": "en", "turns": ["…"], "expected": {…}}

The bundled suite is one such file per kind in `data/`; a file of your own replaces it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    """Items, and the digest of all that could change a score: items, instructions and token limits.

    `file` is None for the bundled suite.
    """

    name: str
    items: tuple[Item, ...]
    digest: str
    file: Path | None = None


def load_suite(file: Path | None = None) -> Suite:
    """The bundled suite, or that of a file. QCompressError, with file and line, for a malformed one."""
    files = [file] if file else [DATA / f"{name}.jsonl" for name in KINDS]
    items: list[Item] = []
    for path in files:
        items += read_items(path, {item.id for item in items})
    return Suite(file.name if file else "bundled", tuple(items), _digest(items), file)


def select(suite: Suite, kinds: Sequence[str] = (), limit: int | None = None) -> list[Item]:
    """The items of `kinds` (all when empty), `limit` of each spread over the kind. QCompressError when none is left."""
    chosen: list[Item] = []
    for kind in kinds or KINDS:
        items = [item for item in suite.items if item.kind == kind]
        if kinds and not items:
            raise QCompressError(f"suite {suite.name}: has no item of kind {kind}; leave --kind {kind} out")
        count = min(limit or len(items), len(items))
        chosen += [items[index * len(items) // count] for index in range(count)]
    return chosen


def read_items(path: Path, taken: set[str]) -> list[Item]:
    """The items of one file; ids must differ from one another and from `taken`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise QCompressError(f"{path}: cannot be read ({error}); name a .jsonl file in UTF-8") from None
    items: list[Item] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            item = _checked(line, f"{path}: line {number}", taken)
            taken = taken | {item.id}
            items.append(item)
    if not items:
        raise QCompressError(f"{path}: holds no item; write one JSON object a line")
    return items


def _checked(line: str, where: str, taken: set[str]) -> Item:
    try:
        item = parse_item(json.loads(line))
        if item.id in taken:
            raise ValueError(f"id {item.id} is there already")
    except json.JSONDecodeError as error:
        told = f"malformed JSON at column {error.colno}, {error.msg}"
        raise QCompressError(f"{where}: {told}; mend or remove the line") from None
    except (ValueError, RecursionError) as error:
        raise QCompressError(f"{where}: {error}; mend or remove the line") from None
    return item


def parse_item(row: Any) -> Item:
    """A row as an item, checked by its kind. ValueError that says what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError(f"is of type {type(row).__name__}, not an object")
    for field, form in FIELDS.items():
        if not isinstance(row.get(field), form):
            raise ValueError(f"{field} must be a {form.__name__}" if field in row else f"has no {field}")
    if unknown := row.keys() - FIELDS.keys():
        raise ValueError(f"unknown field {min(unknown)}; known: {', '.join(FIELDS)}")
    if row["kind"] not in KINDS:
        raise ValueError(f"unknown kind {row['kind']}; known: {', '.join(KINDS)}")
    if not row["turns"] or not all(isinstance(turn, str) and turn.strip() for turn in row["turns"]):
        raise ValueError("turns must be texts, at least one, none of them blank")
    item = Item(row["id"], row["kind"], row["language"], tuple(row["turns"]), row["expected"])
    KINDS[item.kind].check(item)
    return item


def _digest(items: Sequence[Item]) -> str:
    asked = {name: [KINDS[name].max_tokens, dict(KINDS[name].instruction)] for name in {item.kind for item in items}}
    text = json.dumps([asked, [asdict(item) for item in items]], sort_keys=True, ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

"""The answers of all checkpoints to the same prompts, for people to compare.

A row is a dict with the keys id, kind, turns and answers. The answers have one entry per checkpoint, reference first:

    name, digest     the checkpoint
    answers          one text per turn
    score, reason    from `eval`; None if the answers were not scored
"""

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from calibration.files import text_lines
from compress.checkpoint.load import open_for_text
from compress.checkpoint.read import PathOrCheckpoint
from compress.core.errors import QCompressError
from compress.evaluate.names import short_names
from compress.evaluate.tasks.item import Item
from compress.evaluate.tasks.prompting import answer_items
from compress.evaluate.tasks.runner import OpenRuntime, open_transformers, scores_file
from compress.evaluate.tasks.suite import KINDS, load_suite, select

Row = dict[str, Any]
Report = Callable[[Row], None]


def stored_samples(folder: Path, rows: Sequence[Row], count: int) -> list[Row]:
    """`count` prompts with the answers that `eval` stored in `folder`. `rows` are the rows of that `eval`.

    Kinds alternate. Within a kind, prompts with the largest difference in score come first, then prompts with different
    answers, then the rest. Raises QCompressError if a file is missing.
    """
    digests = {row["name"]: row["digest"] for row in rows}
    lines = {name: read_scores(scores_file(folder, name)) for name in digests}
    samples = []
    for item, first in next(iter(lines.values())).items():
        if all(item in by_id for by_id in lines.values()):
            answers = [
                {"name": name, "digest": digests[name]}
                | {key: by_id[item][key] for key in ("answers", "score", "reason")}
                for name, by_id in lines.items()
            ]
            samples.append({key: first[key] for key in ("id", "kind", "turns")} | {"answers": answers})
    return alternate_kinds(sorted(samples, key=lambda row: (-difference(row), row["id"])), count)


def read_scores(file: Path) -> dict[str, Row]:
    """The lines that `write_scores` wrote, by item id. Raises QCompressError if the file is missing or too old."""
    if not file.is_file():
        raise QCompressError(f"{file}: missing; pass the folder of `qcompress eval --out` with --eval")
    rows = [stored_row(line, where) for line, where in text_lines(file)]
    if any(not isinstance(row, dict) or "turns" not in row for row in rows):
        raise QCompressError(
            f"{file}: this file stores no prompts; run the same `qcompress eval` again, it reuses the stored answers"
        )
    return {row["id"]: row | {"score": row["value"]} for row in rows}


def stored_row(line: str, where: str) -> Any:
    """The JSON value of a stored line. Raises QCompressError, beginning with `where`, if the line is not JSON.

    An answer can contain half a character (a lone surrogate), so this function accepts it.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise QCompressError(f"{where}: not JSON ({error}); run the same `qcompress eval` again") from None


def difference(sample: Row) -> float:
    """How much the checkpoints differ on a prompt: the range of their scores, plus 0.1 if their texts differ."""
    scores = [answer["score"] or 0 for answer in sample["answers"]]
    texts = {"\n".join(answer["answers"]) for answer in sample["answers"]}
    return max(scores) - min(scores) + 0.1 * (len(texts) > 1)


def alternate_kinds(samples: Sequence[Row], count: int) -> list[Row]:
    """`count` samples: the first of each kind, then the second of each kind, and so on."""
    groups = [[row for row in samples if row["kind"] == kind] for kind in KINDS]
    longest = max(map(len, groups))
    ordered = [group[place] for place in range(longest) for group in groups if place < len(group)]
    return ordered[:count]


def fresh_samples(
    sources: Sequence[PathOrCheckpoint],
    count: int,
    *,
    open_runtime: OpenRuntime = open_transformers,
    report: Report = lambda row: None,
) -> list[Row]:
    """`count` prompts of the bundled suite, with new greedy answers of every checkpoint. The answers are not scored."""
    suite = load_suite()
    chosen = select(suite, limit=-(-count // len(KINDS)))
    ordered = alternate_kinds([{"kind": item.kind, "item": item} for item in chosen], count)
    items: list[Item] = [row["item"] for row in ordered]
    samples: list[Row] = [
        {"id": item.id, "kind": item.kind, "turns": list(item.turns), "answers": []} for item in items
    ]
    checkpoints = [open_for_text(source, readable=False) for source in sources]
    names = short_names([checkpoint.path for checkpoint in checkpoints])
    for name, checkpoint in zip(names, checkpoints, strict=True):
        with closing(open_runtime(checkpoint)) as runtime:
            pairs = answer_items(runtime, checkpoint.tokenizer, items, len(items))
            texts = {item.id: answers for item, answers in pairs}
        identity = {"name": name, "digest": checkpoint.digest, "score": None, "reason": None}
        for sample in samples:
            sample["answers"].append(identity | {"answers": texts[sample["id"]]})
        report({"answers": name, "prompts": len(items)})
    return samples

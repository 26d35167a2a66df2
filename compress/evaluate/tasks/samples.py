"""The same prompts put to every checkpoint, side by side: what people read to see what was lost.

A row is a plain dict: id, kind, turns (what was asked), and `answers`, one entry per checkpoint, the reference first:

    name digest      who
    answers          one text a turn
    score reason     as `eval` judged them; None where nothing judged
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.evaluate.names import short_names
from compress.evaluate.tasks.item import Item
from compress.evaluate.tasks.prompting import answer_items
from compress.evaluate.tasks.runner import scores_file
from compress.evaluate.tasks.suite import KINDS, load_suite, select
from compress.runtimes.transformers_generate import OpenEngine, transformers_engine

Row = dict[str, Any]
Report = Callable[[Row], None]


def stored_samples(folder: Path, judged: Sequence[Row], count: int) -> list[Row]:
    """`count` prompts that `eval` put to the checkpoints of its rows `judged`, with the answers it kept in `folder`.

    Kinds take turns. Within a kind those come first on which the checkpoints' scores differ most, then those on which
    their words do: the rest would show that nothing happened. QCompressError when the answers are not there.
    """
    names = {row["name"]: row["digest"] for row in judged}
    lines = {name: read_scores(scores_file(folder, name)) for name in names}
    samples = []
    for item, first in next(iter(lines.values())).items():
        if all(item in own for own in lines.values()):
            answers = [
                {"name": name, "digest": names[name]} | {key: own[item][key] for key in ("answers", "score", "reason")}
                for name, own in lines.items()
            ]
            samples.append({key: first[key] for key in ("id", "kind", "turns")} | {"answers": answers})
    return in_turns(sorted(samples, key=lambda row: (-spread(row), row["id"])), count)


def read_scores(file: Path) -> dict[str, Row]:
    """The lines of a file that `write_scores` wrote, by item id."""
    if not file.is_file():
        raise QCompressError(
            f"{file}: missing, so there are no answers to show; give the folder of qcompress eval --out"
        )
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if any("turns" not in row for row in rows):
        raise QCompressError(f"{file}: has no prompts; run the same qcompress eval again, its answers are kept")
    return {row["id"]: row | {"score": row["value"]} for row in rows}


def spread(sample: Row) -> float:
    """How far the checkpoints are apart: their scores by up to 1, and a little for other words."""
    scores = [answer["score"] or 0 for answer in sample["answers"]]
    texts = {"\n".join(answer["answers"]) for answer in sample["answers"]}
    return max(scores) - min(scores) + 0.1 * (len(texts) > 1)


def in_turns(samples: Sequence[Row], count: int) -> list[Row]:
    """The first `count`, one of each kind, then the second of each kind, and so on; kinds in the suite's order."""
    places = {kind: [row for row in samples if row["kind"] == kind] for kind in KINDS}
    ordered = [
        own[turn] for turn in range(max(map(len, places.values()))) for own in places.values() if turn < len(own)
    ]
    return ordered[:count]


def fresh_samples(
    checkpoints: Sequence[Checkpoint],
    count: int,
    *,
    open_engine: OpenEngine = transformers_engine,
    report: Report = lambda row: None,
) -> list[Row]:
    """`count` prompts of the bundled suite, answered now by every checkpoint, greedily. Nothing is run or judged."""
    suite = load_suite()
    chosen = select(suite, limit=-(-count // len(KINDS)))
    items = in_turns([{"kind": item.kind, "item": item} for item in chosen], count)
    wanted: list[Item] = [row["item"] for row in items]
    samples: list[Row] = [
        {"id": item.id, "kind": item.kind, "turns": list(item.turns), "answers": []} for item in wanted
    ]
    names = short_names([checkpoint.path for checkpoint in checkpoints])
    for name, checkpoint in zip(names, checkpoints, strict=True):
        with open_engine(checkpoint) as engine:
            said = {item.id: texts for item, texts in answer_items(engine, checkpoint.tokenizer, wanted, len(wanted))}
        about = {"name": name, "digest": checkpoint.digest, "score": None, "reason": None}
        for sample in samples:
            sample["answers"].append(about | {"answers": said[sample["id"]]})
        report({"answers": name, "prompts": len(wanted)})
    return samples

"""Checkpoints solve a suite, and each candidate's retention against the reference. One model at a time.

A row is a plain dict, one per checkpoint and kind, with kind "all" for the mean over the kinds:

    name role kind                            who, "reference" or "candidate"
    items errors empty                        scored; the scorer failed (left out); nothing was said (scored 0)
    score score_se                            mean 0 to 1, and its standard error (None for a single item)
    retention retention_low retention_high    %, None for the reference and where the reference scores nothing
    scores                                    every item's score by its id, None for a scorer's error; {} for "all"
    suite suite_file suite_digest             what was asked; the file is None for the bundled suite
    digest engine settings                    of which bytes, by what; whatever could change an answer
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint
from compress.core.atomic import write_whole
from compress.evaluate.names import short_names
from compress.evaluate.tasks.answer_log import AnswerFile
from compress.evaluate.tasks.item import EMPTY, Item, Score, score_item
from compress.evaluate.tasks.prompting import answer_items
from compress.evaluate.tasks.retention import Retention, retention_by_kind
from compress.evaluate.tasks.suite import KINDS, Suite
from compress.runtimes.transformers_generate import OpenEngine, transformers_engine

Row = dict[str, Any]
Told = Callable[[str, int, int], None]  # checkpoint, items done, items in all
Scores = dict[str, dict[str, Score]]  # by kind, then by the item's id, in the items' order
ALL = "all"


@dataclass(frozen=True)
class Asking:
    """How a suite is put to checkpoints. `batch` changes the speed and the memory, not what is asked.

    `settings` are those that can change an answer: they are written with the answers, and must agree to resume.
    """

    suite: Suite
    items: Sequence[Item]
    out: Path
    settings: Mapping[str, Any]
    batch: int = 8
    open_engine: OpenEngine = transformers_engine


def retention_rows(
    reference: PathOrCheckpoint,
    candidates: Sequence[PathOrCheckpoint],
    asking: Asking,
    told: Told = lambda *progress: None,
) -> list[Row]:
    """All rows, the reference's first. Answers, scores and `eval.json` lie in `asking.out`."""
    checkpoints = [open_causal_lm(source) for source in (reference, *candidates)]
    for checkpoint in checkpoints:
        _ = checkpoint.tokenizer  # a missing one fails before hours are spent on the first
    names = short_names([checkpoint.path for checkpoint in checkpoints])
    scored: list[Scores] = []
    rows: list[Row] = []
    for name, checkpoint in zip(names, checkpoints, strict=True):
        scored.append(by_kind(solve(checkpoint, name, asking, told), asking.items))
        about = {"name": name, "role": "candidate" if scored[1:] else "reference"}
        rows += [
            about | row | origin(checkpoint, asking)
            for row in score_rows(scored[-1], scored[0] if scored[1:] else None)
        ]
    write_whole(asking.out / "eval.json", (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode())
    return rows


def origin(checkpoint: Checkpoint, asking: Asking) -> Row:
    """What every row says of how its scores came about."""
    suite = asking.suite
    return {
        "suite": suite.name,
        "suite_file": str(suite.file) if suite.file else None,
        "suite_digest": suite.digest,
        "digest": checkpoint.digest,
        "engine": asking.settings["engine"],
        "settings": dict(asking.settings),
    }


def solve(checkpoint: Checkpoint, name: str, asking: Asking, told: Told) -> dict[str, Score]:
    """The score of every item by id. Only items without an answer on disk are asked; scoring is always done anew."""
    header = {"checkpoint": checkpoint.digest, "suite": asking.suite.digest, "settings": dict(asking.settings)}
    file = AnswerFile(asking.out / f"{stem(name)}.answers.jsonl", header)
    open_items = [item for item in asking.items if item.id not in file.answers]
    told(name, len(asking.items) - len(open_items), len(asking.items))
    if open_items:
        with asking.open_engine(checkpoint) as engine:
            for done, (item, answers) in enumerate(
                answer_items(engine, checkpoint.tokenizer, open_items, asking.batch), 1
            ):
                file.add(item.id, answers)
                told(name, len(asking.items) - len(open_items) + done, len(asking.items))
    scores = {item.id: score_item(KINDS[item.kind], item, file.answers[item.id]) for item in asking.items}
    write_scores(scores_file(asking.out, name), asking.items, scores, file.answers)
    return scores


def scores_file(folder: Path, name: str) -> Path:
    """Where the scores and answers of the checkpoint called `name` are kept."""
    return folder / f"{stem(name)}.scores.jsonl"


def stem(name: str) -> str:
    return name.strip("/").replace("/", "-")


def by_kind(scores: Mapping[str, Score], items: Sequence[Item]) -> Scores:
    found: Scores = {}
    for item in items:
        found.setdefault(item.kind, {})[item.id] = scores[item.id]
    return found


def score_rows(scores: Scores, reference: Scores | None) -> list[Row]:
    """One row a kind, and the mean over the kinds; with the retention, where there is a reference."""
    kept = retention_by_kind(values(reference), values(scores)) if reference else None
    rows: list[Row] = []
    for kind, own in scores.items():
        figures = score_figures(list(own.values())) | retention_figures(kept[0][kind] if kept else None)
        rows.append({"kind": kind} | figures | {"scores": {item: score.value for item, score in own.items()}})
    means = [row["score"] for row in rows if row["score"] is not None]
    counts = {key: sum(row[key] for row in rows) for key in ("items", "errors", "empty")}
    mean = {"score": float(np.mean(means)) if means else None, "score_se": None}
    return [*rows, {"kind": ALL} | counts | mean | retention_figures(kept[1] if kept else None) | {"scores": {}}]


def values(scores: Scores) -> dict[str, list[float | None]]:
    return {kind: [score.value for score in own.values()] for kind, own in scores.items()}


def score_figures(scores: Sequence[Score]) -> Row:
    """How many items, and their mean score with its standard error."""
    known = [score.value for score in scores if score.value is not None]
    return {
        "items": len(known),
        "errors": len(scores) - len(known),
        "empty": sum(score.reason == EMPTY for score in scores),
        "score": float(np.mean(known)) if known else None,
        "score_se": float(np.std(known, ddof=1) / len(known) ** 0.5) if len(known) > 1 else None,
    }


def retention_figures(kept: Retention | None) -> Row:
    """The row's part on retention, all None for the reference."""
    low_to_high = (None, None, None) if kept is None else (kept.value, kept.low, kept.high)
    return dict(zip(("retention", "retention_low", "retention_high"), low_to_high, strict=True))


def write_scores(
    path: Path, items: Sequence[Item], scores: Mapping[str, Score], answers: Mapping[str, list[str]]
) -> None:
    """One line an item: id, kind, turns, value, reason, answers: what a person reads to see what was lost."""
    lines = [
        {"id": item.id, "kind": item.kind, "turns": list(item.turns)}
        | asdict(scores[item.id])
        | {"answers": answers[item.id]}
        for item in items
    ]
    write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())

"""Run a suite on checkpoints, one model at a time, and compute each candidate's retention.

There is one row per checkpoint and kind of task; the kind "all" is the mean over the kinds. A row is a dict:

    name, role, kind                            role is "reference" or "candidate"
    items, errors, empty                        counts: scored items, scorer errors, empty answers (they score 0)
    score, score_se                             mean score from 0 to 1, and its standard error (None for a single item)
    score_low, score_high                       95 % interval of the mean score
    retention, retention_low, retention_high    in %; None for the reference, and if the reference scores 0
    scores                                      score by item id; None for a scorer's error; {} in the row "all"
    suite, suite_file, suite_digest             suite_file is None for the bundled suite
    digest, small_files_digest                  of the checkpoint: config and weights; tokenizer and template
    runtime, settings                           the runtime that generated the answers, and its settings
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.checkpoint.load import open_for_text
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint
from compress.core.atomic import write_atomic
from compress.core.errors import QCompressError
from compress.core.file_kind import json_kind, lines_kind
from compress.core.proportion import mean_interval, score_interval
from compress.evaluate.names import short_names
from compress.evaluate.tasks.answer_log import ANSWERS, AnswerLog, json_line
from compress.evaluate.tasks.item import ALL, EMPTY, Item, Score
from compress.evaluate.tasks.prompting import answer_batches
from compress.evaluate.tasks.retention import Retention, retention_by_kind
from compress.evaluate.tasks.scoring import Scorer
from compress.evaluate.tasks.suite import Suite
from compress.runtimes.protocol import Runtime, open_runtime
from compress.sandbox.run import SandboxError

Row = dict[str, Any]
Report = Callable[[Row], None]
Scores = dict[str, dict[str, Score]]  # kind -> item id -> score, in the order of the items
OpenRuntime = Callable[[Checkpoint], Runtime]
RESULT = "eval.json"
RESULTS = json_kind("role", "kind", "retention", "suite_digest")
SCORES = lines_kind("id", "kind", "turns", "answers")


def open_transformers(checkpoint: Checkpoint) -> Runtime:
    """Open the checkpoint in transformers, in float32."""
    return open_runtime("transformers", checkpoint, dtype="float32")


@dataclass(frozen=True)
class TaskRun:
    """The suite, the runtime and the folder of a run. `batch_size` changes speed and memory, never an answer.

    `settings` are all settings that can change an answer. They are stored with the answers, and a resumed run must have
    the same. `restart` discards stored answers.
    """

    suite: Suite
    items: Sequence[Item]
    out: Path
    settings: Mapping[str, Any]
    batch_size: int = 8
    open_runtime: OpenRuntime = open_transformers
    restart: bool = False


def retention_rows(
    reference: PathOrCheckpoint,
    candidates: Sequence[PathOrCheckpoint],
    run: TaskRun,
    report: Report = lambda row: None,
) -> list[Row]:
    """The rows of all checkpoints, the reference's first. Writes answers, scores and `eval.json` to `run.out`."""
    readable = run.settings.get("runtime") != "vllm"
    checkpoints = [open_for_text(source, readable=readable) for source in (reference, *candidates)]
    names = short_names([checkpoint.path for checkpoint in checkpoints])
    check_files(run.out, names)
    scored: list[Scores] = []
    rows: list[Row] = []
    report({"checkpoints": len(checkpoints), "items": len(run.items), "answers": len(checkpoints) * len(run.items)})
    for name, checkpoint in zip(names, checkpoints, strict=True):
        later = len(run.items) * (len(checkpoints) - len(scored) - 1)
        scored.append(by_kind(score_checkpoint(checkpoint, name, run, report, later=later), run.items))
        reference_scores = scored[0] if scored[1:] else None
        identity = {"name": name, "role": "candidate" if scored[1:] else "reference"}
        rows += [identity | row | origin(checkpoint, run) for row in score_rows(scored[-1], reference_scores)]
    text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    write_atomic(run.out / RESULT, text.encode(errors="backslashreplace"), kind=RESULTS)
    return rows


def check_files(folder: Path, names: Sequence[str]) -> None:
    """Raises QCompressError if another program wrote a file that this run would write or remove."""
    RESULTS.check(folder / RESULT)
    for name in names:
        SCORES.check(scores_file(folder, name))
        ANSWERS.check(answers_file(folder, name))


def remove_files(folder: Path, name: str) -> None:
    """Remove the answers and scores of one checkpoint, and the folder if it is empty then."""
    SCORES.remove(scores_file(folder, name))
    ANSWERS.remove(answers_file(folder, name))
    with suppress(OSError):
        folder.rmdir()


def origin(checkpoint: Checkpoint, run: TaskRun) -> Row:
    """The part of a row that describes the suite, the checkpoint and the settings."""
    return {
        "suite": run.suite.name,
        "suite_file": str(run.suite.file) if run.suite.file else None,
        "suite_digest": run.suite.digest,
        "digest": checkpoint.digest,
        "small_files_digest": checkpoint.small_files_digest,
        "runtime": run.settings["runtime"],
        "settings": dict(run.settings),
    }


def score_checkpoint(
    checkpoint: Checkpoint, name: str, run: TaskRun, report: Report, *, later: int = 0
) -> dict[str, Score]:
    """The score of each item, by id. Stored answers are reused, but scores are always computed again.

    `later` is the number of answers that other checkpoints still need. It counts in the reported time left.
    """
    header = {"checkpoint": checkpoint.digest, "suite": run.suite.digest, "settings": dict(run.settings)}
    log = AnswerLog(answers_file(run.out, name), header, restart=run.restart)
    missing = [item for item in run.items if item.id not in log.answers]
    done, total = len(run.items) - len(missing), len(run.items)
    report({"checkpoint": name, "items": f"{done}/{total}"})
    if missing:
        with closing(run.open_runtime(checkpoint)) as runtime:
            started, before = time.perf_counter(), done
            for batch in answer_batches(runtime, checkpoint.tokenizer, missing, run.batch_size):
                for item, answers in batch:
                    log.add(item.id, answers)
                done += len(batch)
                left = (time.perf_counter() - started) / (done - before) * (total - done + later)
                report({"checkpoint": name, "items": f"{done}/{total}", "eta": left})
    scores = score_items(run.items, log.answers)
    write_scores(scores_file(run.out, name), run.items, scores, log.answers)
    return scores


def score_items(items: Sequence[Item], answers: Mapping[str, list[str]]) -> dict[str, Score]:
    """The score of each item, by id. Raises QCompressError if generated code cannot run here."""
    try:
        with closing(Scorer()) as scorer:
            return {item.id: scorer.score(item, answers[item.id]) for item in items}
    except SandboxError as error:
        raise QCompressError(f"{error}; then run the same command again: all answers are stored") from error


def scores_file(folder: Path, name: str) -> Path:
    """The file with scores and answers of the checkpoint called `name`."""
    return folder / f"{stem(name)}.scores.jsonl"


def answers_file(folder: Path, name: str) -> Path:
    """The file with the answers of the checkpoint called `name`."""
    return folder / f"{stem(name)}.answers.jsonl"


def stem(name: str) -> str:
    """A checkpoint's name as part of a file name."""
    return name.strip("/").replace("/", "-")


def by_kind(scores: Mapping[str, Score], items: Sequence[Item]) -> Scores:
    """The scores, grouped by kind of task."""
    groups: Scores = {}
    for item in items:
        groups.setdefault(item.kind, {})[item.id] = scores[item.id]
    return groups


def score_rows(scores: Scores, reference: Scores | None) -> list[Row]:
    """One row per kind, and one for their mean. With a `reference`, rows have a retention."""
    retention = retention_by_kind(values(reference), values(scores)) if reference else None
    rows: list[Row] = []
    for kind, by_id in scores.items():
        figures = score_figures(list(by_id.values())) | retention_figures(retention[0][kind] if retention else None)
        rows.append({"kind": kind} | figures | {"scores": {item: score.value for item, score in by_id.items()}})
    scored = [row for row in rows if row["score"] is not None]
    means = [row["score"] for row in scored]
    counts = {key: sum(row[key] for row in rows) for key in ("items", "errors", "empty")}
    low, high = (
        mean_interval(means, [(row["score_low"], row["score_high"]) for row in scored]) if means else (None, None)
    )
    mean = {"score": float(np.mean(means)) if means else None, "score_se": None, "score_low": low, "score_high": high}
    mean_retention = retention_figures(retention[1] if retention else None)
    return [*rows, {"kind": ALL} | counts | mean | mean_retention | {"scores": {}}]


def values(scores: Scores) -> dict[str, list[float | None]]:
    """For each kind, the scores of all items as numbers. A scorer's error is None."""
    return {kind: [score.value for score in by_id.values()] for kind, by_id in scores.items()}


def score_figures(scores: Sequence[Score]) -> Row:
    """The counts of items, errors and empty answers, and the mean score with its standard error and interval."""
    numbers = [score.value for score in scores if score.value is not None]
    low, high = score_interval(sum(numbers), len(numbers)) if numbers else (None, None)
    return {
        "items": len(numbers),
        "errors": len(scores) - len(numbers),
        "empty": sum(score.reason == EMPTY for score in scores),
        "score": float(np.mean(numbers)) if numbers else None,
        "score_se": float(np.std(numbers, ddof=1) / len(numbers) ** 0.5) if len(numbers) > 1 else None,
        "score_low": low,
        "score_high": high,
    }


def retention_figures(retention: Retention | None) -> Row:
    """The retention keys of a row. Their values are None if `retention` is None, as for the reference."""
    figures = (None, None, None) if retention is None else (retention.value, retention.low, retention.high)
    return dict(zip(("retention", "retention_low", "retention_high"), figures, strict=True))


def write_scores(
    path: Path, items: Sequence[Item], scores: Mapping[str, Score], answers: Mapping[str, list[str]]
) -> None:
    """Write one line per item, for people: id, kind, turns, score, reason, answers."""
    lines = [
        {"id": item.id, "kind": item.kind, "turns": list(item.turns)}
        | asdict(scores[item.id])
        | {"answers": answers[item.id]}
        for item in items
    ]
    write_atomic(path, b"".join(map(json_line, lines)), kind=SCORES)

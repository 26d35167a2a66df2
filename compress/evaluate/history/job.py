"""The job of `watch`: repeat the measurements of a baseline on a checkpoint, and compare."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.checkpoint.load import open_for_text
from compress.checkpoint.read import Checkpoint
from compress.core.device import pick_device
from compress.core.interrupt import RESUME, on_interrupt
from compress.core.lock import output_lock
from compress.core.rows import ChangeRow
from compress.evaluate.drift.compare import drift_row
from compress.evaluate.drift.windows import evaluation_windows
from compress.evaluate.history.baseline import Baseline
from compress.evaluate.history.settings import WatchSettings
from compress.evaluate.history.store import append_verdicts
from compress.evaluate.history.unchanged import WatchRun, suite_file
from compress.evaluate.history.watch import baseline_items, check_same, drift_changes, task_changes
from compress.evaluate.tasks.job import check_sandbox, runtime_opener
from compress.evaluate.tasks.runner import (
    TaskRun,
    by_kind,
    check_files,
    origin,
    remove_files,
    score_checkpoint,
    score_rows,
)
from compress.evaluate.tasks.suite import load_suite

Row = dict[str, Any]
Report = Callable[[Row], None]


@dataclass(frozen=True)
class Changes:
    """The changes of one measurement (tasks or drift), and the verdicts to store in the history."""

    rows: list[ChangeRow]
    verdicts: list[Row]


def watch_checkpoint(run: WatchRun, *, tag: str | None = None, report: Report = lambda row: None) -> list[ChangeRow]:
    """The changes of task scores and drift since the baseline. Appends new verdicts to the history under `tag`.

    Raises QCompressError if the baseline is not repeatable, or if the device is cuda and torch finds no GPU.
    """
    settings, baseline = run.settings, run.baseline
    pick_device(settings.device)
    checkpoint = open_for_text(run.path, readable=False)
    parts: list[Changes] = []
    if baseline.tasks:
        parts.append(watch_tasks(checkpoint, baseline, settings, report))
    else:
        report({"tasks": f"not compared; {baseline.tag} has no eval of {baseline.name}"})
    if baseline.drift is not None and settings.reference:
        parts.append(watch_drift(checkpoint, settings.reference, baseline, settings, report))
    elif baseline.drift is not None:
        report({"KL and perplexity": "not compared; set --reference"})
    rows = [row for part in parts for row in part.rows]
    verdicts = [row for part in parts for row in part.verdicts]
    append_verdicts(run.history, "watch", [*verdicts, run.summary(rows, measured=True)], tag=tag)
    return rows


def watch_tasks(checkpoint: Checkpoint, baseline: Baseline, settings: WatchSettings, report: Report) -> Changes:
    """Score the items of the baseline again. Afterwards the stored answers are removed, so the next run starts anew."""
    first = baseline.first_row
    suite = load_suite(suite_file(baseline, settings))
    items = baseline_items(baseline, suite)
    if any(item.kind == "python" for item in items):
        check_sandbox(report)
    folder = settings.out / checkpoint.digest.removeprefix("sha256:")[:16]
    check_files(folder, [baseline.name])
    opener = runtime_opener(first["runtime"], first["settings"]["dtype"], settings.device)
    run = TaskRun(suite, items, folder, first["settings"], settings.batch_size, opener)
    with output_lock(folder), on_interrupt(lambda: f"stored answers are kept in {folder}; {RESUME}"):
        scores = by_kind(score_checkpoint(checkpoint, baseline.name, run, report), items)
    remove_files(folder, baseline.name)
    changes = task_changes(baseline, scores, max_drop=settings.max_drop)
    by_name = {row["kind"]: row for row in changes}
    identity = {"name": baseline.name, "role": "candidate", "baseline": baseline.tag}
    verdicts = [
        identity | row | origin(checkpoint, run) | change_part(by_name[row["kind"]])
        for row in score_rows(scores, None)
        if row["kind"] in by_name
    ]
    return Changes(changes, verdicts)


def change_part(row: ChangeRow) -> Row:
    """The keys of a change that the history stores with a verdict."""
    return {key: row[key] for key in ("change", "change_low", "change_high", "fell")}


def watch_drift(
    checkpoint: Checkpoint, reference: Path, baseline: Baseline, settings: WatchSettings, report: Report
) -> Changes:
    """Measure KL and perplexity again, on the windows of the baseline."""
    before = baseline.drift
    assert before is not None
    opened = open_for_text(reference)
    sizes = {name: before[name] for name in ("n_samples", "seq_len")}
    text, start = settings.eval_text or before["text"], {"token": before["start_token"]}
    windows = evaluation_windows(opened, [checkpoint], text, **sizes, seed=before.get("seed") or 0, start=start)
    check_same(baseline, reference=opened.digest, windows_digest=windows.manifest.get("digest"))
    now = drift_row(opened, checkpoint, windows, device=settings.device, report=report)
    verdict = {**now, "name": baseline.name, "baseline": baseline.tag}
    return Changes(drift_changes(baseline.name, before, now), [verdict])

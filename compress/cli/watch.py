"""qcompress watch: has a checkpoint fallen since its baseline?"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.console import emit, json_option, report
from compress.cli.history import keep_verdicts
from compress.core.errors import GateFailure, QCompressError

if TYPE_CHECKING:
    from compress.checkpoint.read import Checkpoint

Row = dict[str, Any]
SIGNS = {"points": "{:+.1f} points", "nats": "{:+.4f} nats", "%": "{:+.2f} %"}


@click.command("watch")
@click.argument("checkpoint", metavar="CKPT", type=click.Path(path_type=Path))
@click.option("--baseline", required=True, metavar="TAG", help="The tag of the verdicts to compare with.")
@click.option("--history", type=click.Path(path_type=Path), required=True, help="Where they are; this one is appended.")
@click.option("--name", help="Which checkpoint of the baseline.  [default: the one called like CKPT, or the only one]")
@click.option("--reference", type=click.Path(path_type=Path), help="The 16-bit model; compares KL and perplexity too.")
@click.option("--max-drop", type=click.FloatRange(min=0), help="Points that no kind may drop, significant or not.")
@click.option("--suite", type=click.Path(path_type=Path), help="Where the baseline's own task file is now.")
@click.option("--text", help="Where the baseline's text is now: NAME or FILE.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Items per batch.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/watch"),
    show_default=True,
    help="Where an interrupted run keeps its answers, to go on from there.",
)
@click.option("--tag", help="A label for this verdict in the history.")
@json_option
def command(
    checkpoint: Path,
    baseline: str,
    history: Path,
    name: str | None,
    reference: Path | None,
    max_drop: float | None,
    suite: Path | None,
    text: str | None,
    batch_size: int,
    out: Path,
    tag: str | None,
    as_json: bool,
) -> None:
    """Let CKPT solve again what the baseline solved, and compare item by item; ends with exit code 3 when it fell.

    The baseline is what eval, and verify or compare, appended to the history under TAG: the same items, the same
    runtime, the same text, or the run is refused by the name of what differs. A kind fell when the whole 95 % interval
    of its paired change is below 0, or when it dropped by more than --max-drop points.

    \b
    qcompress eval smollm2-awq --reference smollm2 --history verdicts.sqlite --tag v1
    qcompress verify smollm2 smollm2-awq --history verdicts.sqlite --tag v1
    qcompress watch smollm2-awq --baseline v1 --history verdicts.sqlite --reference smollm2
    """
    from compress.checkpoint.load import open_causal_lm
    from compress.evaluate.history.store import read_verdicts
    from compress.evaluate.history.watch import find_baseline

    where = str(history)
    found = find_baseline(read_verdicts(history), baseline, name or checkpoint.resolve().name, where=where)
    opened = open_causal_lm(checkpoint)
    rows: list[Row] = []
    kept: list[Row] = []
    if found.tasks:
        changes, verdicts = watch_tasks(opened, found, suite, batch_size, out, max_drop)
        rows, kept = rows + changes, kept + verdicts
    else:
        report({"tasks": f"not compared; {baseline} holds no eval of {found.name}"})
    if found.drift and reference:
        changes, verdicts = watch_drift(opened, open_causal_lm(reference), found, text)
        rows, kept = rows + changes, kept + verdicts
    elif found.drift:
        report({"KL and perplexity": "not compared; give --reference"})
    if not rows:
        raise QCompressError(f"{where}: {baseline} holds KL and perplexity only; give --reference")
    keep_verdicts(history, tag, "watch", kept)
    emit(rows if as_json else [shown(row) for row in rows], as_json=as_json, title=f"against {baseline}")
    refuse_falls(rows, baseline)


def watch_tasks(
    checkpoint: "Checkpoint", baseline: Any, suite: Path | None, batch_size: int, out: Path, max_drop: float | None
) -> tuple[list[Row], list[Row]]:
    """The changes by kind, and the history's rows. Answers of a finished run go: the next one asks anew."""
    from compress.evaluate.history.watch import baseline_items, task_changes
    from compress.evaluate.tasks.job import check_sandbox, runtime_opener
    from compress.evaluate.tasks.runner import TaskRun, by_kind, origin, score_checkpoint, score_rows
    from compress.evaluate.tasks.suite import load_suite

    about = baseline.about
    file = suite or (Path(about["suite_file"]) if about.get("suite_file") else None)
    loaded = load_suite(file)
    items = baseline_items(baseline, loaded)
    if any(item.kind == "python" for item in items):
        check_sandbox(report)
    folder = out / checkpoint.digest.removeprefix("sha256:")[:16]
    opener = runtime_opener(about["runtime"], about["settings"]["dtype"])
    run = TaskRun(loaded, items, folder, about["settings"], batch_size, opener)
    scores = by_kind(score_checkpoint(checkpoint, baseline.name, run, report), items)
    shutil.rmtree(folder)
    changes = task_changes(baseline, scores, max_drop=max_drop)
    change = {
        row["kind"]: {key: row[key] for key in ("change", "change_low", "change_high", "fell")} for row in changes
    }
    known = {"name": baseline.name, "role": "candidate", "baseline": baseline.tag}
    verdicts = [
        known | row | origin(checkpoint, run) | change[row["kind"]]
        for row in score_rows(scores, None)
        if row["kind"] in change
    ]
    return changes, verdicts


def watch_drift(
    checkpoint: "Checkpoint", reference: "Checkpoint", baseline: Any, text: str | None
) -> tuple[list[Row], list[Row]]:
    """The changes of KL and perplexity, and the history's row."""
    from compress.evaluate.drift.compare import drift_row
    from compress.evaluate.drift.windows import evaluation_windows
    from compress.evaluate.history.watch import drift_changes, refuse_other

    before = baseline.drift
    size = {key: before[key] for key in ("n_samples", "seq_len")}
    read = evaluation_windows(reference, [checkpoint], text or before["text"], **size)
    refuse_other(baseline, reference=reference.digest, windows_digest=read.manifest.get("digest"))
    now = drift_row(reference, checkpoint, read, report=report)
    return drift_changes(baseline.name, before, now), [now | {"name": baseline.name, "baseline": baseline.tag}]


def shown(row: Row) -> Row:
    """A row as the terminal shows it."""
    digits = {"points": 1, "nats": 4, "%": 2}[row["unit"]]
    known = {key: None if row[key] is None else f"{row[key]:.{digits}f}" for key in ("before", "now")}
    low, high = row["change_low"], row["change_high"]
    return {
        "kind": row["kind"],
        "items": row["items"] or None,
        **known,
        "change": "n/a" if row["change"] is None else SIGNS[row["unit"]].format(row["change"]),
        "95 % interval": None if low is None else f"{low:+.{digits}f} to {high:+.{digits}f}",
        "fell": row["fell"],
    }


def refuse_falls(rows: list[Row], tag: str) -> None:
    """GateFailure that names every kind that fell, and by how much."""
    fallen = [row for row in rows if row["fell"]]
    if fallen:
        told = ", ".join(f"{row['kind']} {SIGNS[row['unit']].format(row['change'])}" for row in fallen)
        raise GateFailure(
            f"{fallen[0]['name']} fell against {tag}: {told}; take the old bytes back, or tag a new baseline"
        )

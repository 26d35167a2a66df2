"""What is known of a checkpoint's quality: results in its record, and verdicts in a history that have its digest."""

from pathlib import Path

from compress.checkpoint.read import Checkpoint
from compress.core.report import Row
from compress.evaluate.history.store import read_verdicts

FIGURES = ("kl", "kl_se", "perplexity", "perplexity_se", "perplexity_ratio", "top1", "score", "retention", "passed")
NAMES = ("reference", "kind", "eval_text", "suite", "tag")


def quality_rows(checkpoint: Checkpoint, history: Path | None) -> list[Row]:
    """The results, each with `from`, figures, and what they were measured against. Times are left out."""
    rows = [*recorded(checkpoint.record)]
    for verdict in read_verdicts(history) if history else ():
        values = dict(verdict)
        shown = {key: values[key] for key in (*NAMES, *FIGURES) if isinstance(values.get(key), str | int | float)}
        if values.get("digest") == checkpoint.digest and shown.keys() & {*FIGURES}:
            rows.append({"from": str(values.get("command")), **shown})
    return rows


def recorded(record: Row) -> list[Row]:
    """The results in a record: those of tuning, and those that a recipe has added."""
    tuned = record.get("tune")
    figures = {key: record[key] for key in FIGURES if isinstance(record.get(key), int | float)}
    if not figures and isinstance(tuned, dict) and isinstance(tuned.get("kl"), int | float):
        figures = {"kl": tuned["kl"]}
    return [{"from": str(record.get("command", "record")), **figures}] if figures else []

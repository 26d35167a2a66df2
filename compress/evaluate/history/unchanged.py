"""Was the same checkpoint measured before, with the same reference, text, tasks, limits and software?

Digests of files decide, and nothing heavy is imported. Every watch stores a summary with its inputs and its changes. If
a watch has the inputs of the last summary, it has the same changes. If it has the files of the baseline, every change
is 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from calibration.corpus import source_digest
from compress.checkpoint.digest import small_files_digest, weights_digest
from compress.checkpoint.hub import model_name
from compress.core.errors import QCompressError
from compress.core.rows import ChangeRow
from compress.core.versions import installed_versions
from compress.evaluate.history.baseline import Baseline, Row, find_baseline
from compress.evaluate.history.settings import WatchSettings
from compress.evaluate.history.store import append_verdicts, read_verdicts
from compress.evaluate.tasks.item import ALL
from compress.evaluate.tasks.suite import load_suite

Unit = Literal["points", "nats", "%"]


@dataclass(frozen=True)
class WatchRun:
    """One watch: the checkpoint, its baseline, the last summary under the same tag, and the digests of all inputs."""

    path: Path
    history: Path
    settings: WatchSettings
    baseline: Baseline
    last: Row | None
    inputs: dict[str, Any]

    def unchanged(self) -> tuple[list[ChangeRow], str] | None:
        """The changes and the time of an earlier measurement of the same inputs, or None if there is none.

        The time is a text, such as "the measurement of 2026-01-31T12:00:00+00:00" or "the baseline v1".
        """
        if self.last is not None and self.last["inputs"] == self.inputs:
            rows = [{**row, "measured": False} for row in self.last["changes"]]
            return cast("list[ChangeRow]", rows), self.last["since"]
        same = baseline_inputs(self.baseline, with_drift=self.with_drift)
        if all(self.inputs[key] == value for key, value in same.items()):
            return no_changes(self.baseline, with_drift=self.with_drift), f"the baseline {self.baseline.tag}"
        return None

    @property
    def with_drift(self) -> bool:
        """Whether KL and perplexity are compared."""
        return self.baseline.drift is not None and self.settings.reference is not None

    def summary(self, rows: Sequence[ChangeRow], *, measured: bool) -> dict[str, Any]:
        """The row that the history stores for the whole watch."""
        return {
            "name": self.baseline.name,
            "digest": self.inputs["digest"],
            "baseline": self.baseline.tag,
            "measured": measured,
            "passed": not any(row["fell"] for row in rows),
            "inputs": self.inputs,
            "changes": list(rows),
        }

    def store_unchanged(self, rows: Sequence[ChangeRow], tag: str | None) -> None:
        """Append only the summary: no figure was measured, so none is stored."""
        append_verdicts(self.history, "watch", [self.summary(rows, measured=False)], tag=tag)


def prepare_watch(path: Path, history: Path, settings: WatchSettings) -> WatchRun:
    """Find the baseline and read the digests of all inputs.

    Raises QCompressError if the history has no such baseline, or if the baseline needs a reference.
    """
    verdicts = read_verdicts(history)
    baseline = find_baseline(verdicts, settings.baseline, settings.name or model_name(path), where=str(history))
    if not baseline.tasks and not settings.reference:
        raise QCompressError(f"{history}: tag {baseline.tag} has only KL and perplexity; add --reference")
    return WatchRun(
        path, history, settings, baseline, last_summary(verdicts, baseline), read_inputs(path, baseline, settings)
    )


def last_summary(verdicts: Sequence[Row], baseline: Baseline) -> Row | None:
    """The last summary of a watch against this baseline, or None if there is none.

    The key `since` is added: a text with the time at which the summary's figures were measured.
    """
    names = {"command": "watch", "name": baseline.name, "baseline": baseline.tag}
    rows = [row for row in verdicts if "inputs" in row and all(row.get(key) == value for key, value in names.items())]
    if not rows:
        return None
    measured = [row["time"] for row in rows if row["measured"] and row["inputs"] == rows[-1]["inputs"]]
    since = f"the measurement of {measured[-1]}" if measured else f"the baseline {baseline.tag}"
    return {**rows[-1], "since": since}


def read_inputs(path: Path, baseline: Baseline, settings: WatchSettings) -> dict[str, Any]:
    """Everything that can change the result of a watch, as digests and plain values."""
    inputs: dict[str, Any] = {
        "digest": weights_digest(path),
        "small_files_digest": small_files_digest(path),
        "software": installed_versions(),
        "baseline": [row["time"] for row in (*baseline.tasks.values(), *filter(None, [baseline.drift]))],
        "device": settings.device,
        "max_drop": settings.max_drop,
    }
    if baseline.tasks:
        inputs["suite"] = load_suite(suite_file(baseline, settings)).digest
    if baseline.drift is not None and settings.reference:
        text = settings.eval_text or baseline.drift["text"]
        inputs |= {"reference": weights_digest(settings.reference), "text": text and source_digest(text)}
        inputs["reference_small_files"] = small_files_digest(settings.reference)
    return inputs


def suite_file(baseline: Baseline, settings: WatchSettings) -> Path | None:
    """The task file to repeat; None is the bundled suite."""
    stored = baseline.first_row.get("suite_file")
    return settings.suite or (Path(stored) if stored else None)


def baseline_inputs(baseline: Baseline, *, with_drift: bool) -> dict[str, Any]:
    """The inputs with which the baseline's verdicts were measured.

    An input that the history does not store is None, which differs from every present input.
    """
    drift = baseline.drift if with_drift else None
    rows = [*baseline.tasks.values(), *([drift] if drift else [])]
    inputs = {key: common(rows, key) for key in ("digest", "small_files_digest", "software")}
    if baseline.tasks:
        inputs["suite"] = baseline.first_row.get("suite_digest")
    if drift is not None:
        inputs |= {"reference": baseline.reference, "text": drift.get("text_digest")}
        inputs["reference_small_files"] = baseline.reference_small_files
    return inputs


def common(rows: Sequence[Row], key: str) -> Any:
    """The value that all rows have under `key`, or None."""
    first = rows[0].get(key)
    return first if all(row.get(key) == first for row in rows) else None


def no_changes(baseline: Baseline, *, with_drift: bool) -> list[ChangeRow]:
    """A change of exactly 0 for every figure of the baseline."""
    name, rows = baseline.name, []
    for kind, row in baseline.tasks.items():
        score = None if row["score"] is None else 100 * row["score"]
        rows.append(no_change(name, kind, "points", row["items"], {"value": score}))
    scores = [row["before"] for row in rows if row["before"] is not None]
    if scores:
        mean = {"value": sum(scores) / len(scores)}
        rows.append(no_change(name, ALL, "points", sum(row["items"] for row in rows), mean))
    if with_drift and baseline.drift is not None:
        drift, documents = baseline.drift, len(baseline.drift.get("documents") or ())
        for kind, unit in cast("list[tuple[str, Unit]]", [("kl", "nats"), ("perplexity", "%")]):
            figures = {"value": drift[kind], "se": drift.get(f"{kind}_se"), "tokens": drift["tokens"]}
            rows.append(no_change(name, kind, unit, documents, figures))
    return rows


def no_change(name: str, kind: str, unit: Unit, items: int, figures: Mapping[str, Any]) -> ChangeRow:
    """The row of one figure without a change. `figures` holds its value, standard error and token count."""
    value, error = figures["value"], figures.get("se")
    change = None if value is None else 0.0
    return {
        "name": name,
        "kind": kind,
        "unit": unit,
        "items": items,
        "before": value,
        "now": value,
        "before_se": error,
        "now_se": error,
        "tokens": figures.get("tokens"),
        "change": change,
        "change_low": change,
        "change_high": change,
        "too_few": False,
        "fell": False,
        "measured": False,
    }

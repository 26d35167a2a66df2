"""The baseline of a watch: the last verdicts on one checkpoint under one tag of the history."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.core.errors import QCompressError
from compress.evaluate.tasks.item import ALL

Row = Mapping[str, Any]
DRIFT_COMMANDS = ("verify", "compare")


@dataclass(frozen=True)
class Baseline:
    """The last verdicts on one checkpoint under one tag.

    `tasks` maps kinds of task to rows. `drift` is the row of verify or compare, or None if there is none.
    """

    tag: str
    name: str
    tasks: Mapping[str, Row]
    drift: Row | None
    reference: str | None  # digest of the checkpoint that `drift` was measured against
    reference_small_files: str | None = None  # digest of that checkpoint's tokenizer and template

    @property
    def first_row(self) -> Row:
        """The first task row. All task rows have the same suite and settings."""
        return next(iter(self.tasks.values()))


def find_baseline(verdicts: Sequence[Row], tag: str, name: str, *, where: str = "the history") -> Baseline:
    """The baseline of the checkpoint `name`, or of the only candidate that has verdicts under the tag.

    Raises QCompressError if the tag has no verdicts, or verdicts on several other checkpoints.
    """
    tagged = [row for row in verdicts if row["tag"] == tag]
    if not tagged:
        tags = ", ".join(sorted({row["tag"] for row in verdicts if row["tag"]})) or "none"
        raise QCompressError(
            f"{where}: tag {tag} not found; the tags are {tags}; store a baseline with qcompress eval --tag {tag}"
        )
    names = list(dict.fromkeys(row["name"] for row in tagged))
    candidates = list(dict.fromkeys(row["name"] for row in tagged if row.get("role") == "candidate"))
    if name not in names:
        if len(candidates) != 1:
            raise QCompressError(
                f"{where}: {tag} has verdicts on {', '.join(names)}, not on {name}; choose one with --name"
            )
        name = candidates[0]
    rows = [row for row in tagged if row["name"] == name]
    scored = [row for row in rows if row["command"] == "eval" and row["kind"] != ALL]
    tasks = {row["kind"]: row for row in scored if row["time"] == scored[-1]["time"]}
    drift = next(
        (row for row in reversed(rows) if row["command"] in DRIFT_COMMANDS and row.get("role") == "candidate"), None
    )
    if not tasks and drift is None:
        raise QCompressError(
            f"{where}: {tag} has no verdict of eval, verify or compare on {name}; run one of them with --tag {tag}"
        )
    digests = (reference_digest(tagged, drift, key) for key in ("digest", "small_files_digest"))
    return Baseline(tag, name, tasks, drift, *digests)


def reference_digest(tagged: Sequence[Row], drift: Row | None, key: str) -> str | None:
    """A digest of the checkpoint that `drift` was measured against, or None if the history does not store it."""
    if drift and drift.get(f"reference_{key}"):
        return str(drift[f"reference_{key}"])
    same = [row for row in tagged if drift and row["command"] == "compare" and row["time"] == drift["time"]]
    return next((row.get(key) for row in same if row.get("role") == "reference"), None)

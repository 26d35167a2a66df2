"""What a report is made of: the rows of every command that judged these checkpoints, and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from compress.evaluate.drift.limits import judge_rows

Row = dict[str, Any]
SERIES = 7  # colours of the page


@dataclass(frozen=True)
class Facts:
    """`rows` of `compare_rows`, the reference's first; the rest is shown where it is there.

    `retention`: of `retention_rows`. `speed`: of `qcompress bench`. `samples`: of `stored_samples`. `history`: of
    `trend_rows`. `limits`: what was asked of the candidates, by option (`max_size` in bytes, `max_kl`,
    `min_retention`); the verdicts follow from them and from the rows' blocks, but for `verdicts` of a caller that
    judged by more, such as the validator. `command`: the line that made the report. ValueError without a candidate.
    """

    rows: Sequence[Row]
    verdicts: Sequence[Row] = ()
    retention: Sequence[Row] = ()
    speed: Sequence[Row] = ()
    samples: Sequence[Row] = ()
    history: Sequence[Row] = ()
    limits: Mapping[str, Any] = field(default_factory=dict)
    title: str | None = None
    command: str | None = None

    def __post_init__(self) -> None:
        if len(self.rows) < 2:
            raise ValueError(f"evaluate.report: {len(self.rows)} rows; a report needs a reference and a candidate")

    @property
    def reference(self) -> Row:
        return self.rows[0]

    @property
    def candidates(self) -> Sequence[Row]:
        return self.rows[1:]

    @cached_property
    def judged(self) -> dict[str, Row]:
        """{"name", "passed", "reason"} by the name of every candidate that there was something to judge by."""
        found = judge_rows(self.candidates, self.retention, self.limits)
        return {row["name"]: row for row in (*found, *self.verdicts)}

    def index_of(self, digest: str | None) -> int | None:
        """The place in `rows` of the checkpoint with this digest; None for one that was not compared."""
        return next((index for index, row in enumerate(self.rows) if row["digest"] == digest), None)

    def machine_readable(self) -> Row:
        """Everything that is shown, by the name of its field; what is not there is left out."""
        values = {one.name: getattr(self, one.name) for one in fields(self)} | {"verdicts": list(self.judged.values())}
        shown = {key: value for key, value in values.items() if value and key not in ("title", "command")}
        return {key: dict(value) if isinstance(value, Mapping) else list(value) for key, value in shown.items()}


def series_of(index: int) -> int:
    """The number of the colour of the checkpoint at `index` of the rows; -1 is the reference's grey."""
    return -1 if index == 0 else (index - 1) % SERIES


def css_colour(index: int) -> str:
    """The same as CSS."""
    number = series_of(index)
    return "var(--mute)" if number < 0 else f"var(--s{number})"

"""The data of a report: rows of several commands on the compared checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from compress.core.rows import CompareRow, RetentionRow, SampleRow, TrendRow, VerdictRow
from compress.evaluate.drift.limits import make_verdicts

Row = dict[str, Any]
SERIES = 8  # number of colours for candidates


@dataclass(frozen=True)
class ReportData:
    """All rows that a report shows. The report leaves out empty fields.

    `rows` and `teacher` come from `compare_with_teacher`; `rows` starts with the reference. `retention` comes from
    `eval`, `speed` from `bench`, `samples` from `stored_samples` and `history` from `trend_rows`. `limits` maps options
    to limits; `max_size` is in bytes. Verdicts are computed from limits and located blocks, unless `verdicts` is set.
    `command` is the command line of the report. Raises ValueError if `rows` has no candidate.
    """

    rows: Sequence[CompareRow]
    teacher: CompareRow | None = None
    verdicts: Sequence[VerdictRow] = ()
    retention: Sequence[RetentionRow] = ()
    speed: Sequence[Row] = ()
    samples: Sequence[SampleRow] = ()
    history: Sequence[TrendRow] = ()
    limits: Mapping[str, Any] = field(default_factory=dict)
    title: str | None = None
    command: str | None = None

    def __post_init__(self) -> None:
        if len(self.rows) < 2:
            raise ValueError(
                f"evaluate.report: number of rows is {len(self.rows)}, but a report needs a reference and a candidate"
            )

    @property
    def reference(self) -> CompareRow:
        return self.rows[0]

    @property
    def table_rows(self) -> list[CompareRow]:
        """The rows of the table of figures, in this order: teacher (if not None), reference, candidates."""
        return [*([] if self.teacher is None else [self.teacher]), *self.rows]

    @property
    def candidates(self) -> Sequence[CompareRow]:
        return self.rows[1:]

    @cached_property
    def verdict_by_name(self) -> dict[str, VerdictRow]:
        """The verdicts by candidate. A candidate without limits and located blocks has no verdict."""
        verdicts = make_verdicts(self.candidates, self.retention, self.limits)
        return {row["name"]: row for row in (*verdicts, *self.verdicts)}

    @property
    def score_reference(self) -> str:
        """The name of the model that retention refers to: "the reference", or "teacher NAME" if it is not compared."""
        base = next((row for row in self.retention if row["role"] == "reference"), None)
        return "the reference" if base is None or self.index_of(base["digest"]) == 0 else f"teacher {base['name']}"

    def index_of(self, digest: str | None) -> int | None:
        """The index in `rows` of the checkpoint with this digest, or None if `rows` does not contain it."""
        return next((index for index, row in enumerate(self.rows) if row["digest"] == digest), None)

    @property
    def names(self) -> list[tuple[str, str]]:
        """(CSS colour, name) of every candidate."""
        return [(css_colour(index), row["name"]) for index, row in enumerate(self.rows) if index]

    def machine_readable(self) -> Row:
        """All rows that the report shows, by field. Empty fields are left out."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values["verdicts"] = list(self.verdict_by_name.values())
        shown = {key: value for key, value in values.items() if value and key not in ("title", "command")}
        return {key: dict(value) if isinstance(value, Mapping) else list(value) for key, value in shown.items()}


def series_of(index: int) -> int:
    """The colour number of the checkpoint at this index of the rows. The reference has -1, which is grey."""
    return -1 if index == 0 else (index - 1) % SERIES


def css_colour(index: int) -> str:
    """The CSS colour of the checkpoint at this index of the rows."""
    number = series_of(index)
    return "var(--mute)" if number < 0 else f"var(--s{number})"

"""The job of `compare`: measure drift, read results of other commands, and write the report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import Checkpoint
from compress.core.rows import CompareRow, RetentionRow, SampleRow
from compress.evaluate.drift.job import measure_drift
from compress.evaluate.drift.limits import add_verdicts, make_verdicts
from compress.evaluate.drift.settings import CompareLimits, DriftSettings, ReportSettings
from compress.evaluate.history.store import read_verdicts
from compress.evaluate.report.collect import load_results
from compress.evaluate.report.page import write_report
from compress.evaluate.report.report_data import ReportData
from compress.evaluate.report.trend_section import trend_rows
from compress.evaluate.tasks.samples import fresh_samples, stored_samples

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`: drift rows with verdicts, and the results of `eval` and `bench` for the report.

    `rows` starts with the reference's row. `teacher` is the teacher's row, or None.
    """

    checkpoints: Sequence[Checkpoint]
    rows: Sequence[CompareRow]
    teacher: CompareRow | None
    limits: Mapping[str, Any]
    results: Mapping[str, Any]
    samples: Sequence[SampleRow]
    new_answers: int

    @property
    def all_rows(self) -> list[CompareRow]:
        """The teacher's row, if there is a teacher, followed by `rows`."""
        return [*([] if self.teacher is None else [self.teacher]), *self.rows]


def compare_checkpoints(
    sources: Sequence[Path],
    drift: DriftSettings,
    limits: CompareLimits,
    settings: ReportSettings,
    report: Report = lambda row: None,
    *,
    teacher: Path | None = None,
) -> Comparison:
    """Compare `sources` with the first of them, the reference, and with `teacher` if it is not None.

    Files are read before any model runs, so a wrong file fails early.
    """
    checkpoints = [open_causal_lm(path) for path in sources]
    results = load_results(checkpoints, settings.eval, settings.bench)
    count = settings.answer_count() if settings.html else 0
    stored: Sequence[SampleRow] = []
    if settings.eval and count:
        folder = settings.eval if settings.eval.is_dir() else settings.eval.parent
        stored = cast("list[SampleRow]", stored_samples(folder, results["retention"], count))
    top = None if teacher is None else open_causal_lm(teacher)
    rows = measure_drift(checkpoints, drift, report, teacher=top)
    above, rows = (None, rows) if top is None else (rows[0], rows[1:])
    retention = cast("list[RetentionRow]", results["retention"])
    rows = add_verdicts(rows, make_verdicts(rows[1:], retention, asdict(limits)))
    return Comparison(checkpoints, rows, above, asdict(limits), results, stored, 0 if settings.eval else count)


def store_report(
    path: Path, comparison: Comparison, history: Path | None, command: str, report: Report = lambda row: None
) -> None:
    """Write the HTML report. If answers were requested but none are stored, they are generated first."""
    samples = comparison.samples
    if comparison.new_answers:
        answers = fresh_samples(comparison.checkpoints, comparison.new_answers, report=report)
        samples = cast("list[SampleRow]", answers)
    data = ReportData(
        comparison.rows,
        teacher=comparison.teacher,
        limits={name: limit for name, limit in comparison.limits.items() if limit is not None},
        history=trend_rows(read_verdicts(history), comparison.rows) if history else [],
        command=command,
        samples=samples,
        retention=comparison.results["retention"],
        speed=comparison.results["speed"],
    )
    write_report(path, data)
    report({"report": path})

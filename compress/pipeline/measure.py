"""The measurements of a recipe and the report that shows them. The functions return plain rows for result files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.checkpoint.read import Checkpoint, read_json
from compress.core.atomic import write_atomic
from compress.core.report import Report
from compress.core.rows import CompareRow, VerdictRow
from compress.evaluate.drift.compare import compare_with_teacher
from compress.evaluate.drift.limits import HELP_DAMAGE, broken_limits, cure
from compress.evaluate.drift.windows import evaluation_windows
from compress.evaluate.report import ReportData, write_report
from compress.evaluate.speed.measure import bench_rows
from compress.evaluate.speed.settings import Prediction, Resources, Timing
from compress.evaluate.tasks.job import suite_rows
from compress.evaluate.tasks.samples import stored_samples
from compress.evaluate.tasks.settings import RuntimeSettings, TaskSettings
from compress.pipeline.models import OpenCheckpoints
from compress.pipeline.stage import TABLE, check_file
from compress.recipe import BenchPart, Recipe

Row = dict[str, Any]
Limits = dict[str, float | None]


def compare_variants(recipe: Recipe, checkpoints: OpenCheckpoints, paths: Sequence[Path], report: Report) -> Row:
    """The drift rows of the student and all variants, under the key "compare".

    With a distillation, "teacher" holds the teacher's row, and "distill" the row from the student's record.
    """
    student, variants = checkpoints[recipe.student_path], [checkpoints[path] for path in paths]
    verify, teacher = recipe.verify, checkpoints[recipe.teacher] if recipe.distill else None
    first, others = (student, variants) if teacher is None else (teacher, [student, *variants])
    samples, seq_len = verify.samples, verify.seq_len
    windows = evaluation_windows(first, others, verify.eval_text, n_samples=samples, seq_len=seq_len, fit=True)
    rows = compare_with_teacher(teacher, student, variants, windows, report=report)
    if teacher is None:
        return {"compare": rows}
    return {"compare": rows[1:], "teacher": rows[0], "distill": student_row(student)}


def student_row(student: Checkpoint) -> Row:
    """The row that `distill` stored in the student's record."""
    rows = student.record.get("rows") or [{}]
    return dict(rows[0])


def run_tasks(recipe: Recipe, variants: Sequence[Path], report: Report) -> Row:
    """Task scores against the teacher, under the key "retention", and stored answers, under "samples".

    The student and its variants are scored, or only the variants if the recipe has no distillation. Raises ValueError
    if the recipe has no eval section.
    """
    if recipe.eval is None:
        raise ValueError("the recipe has no eval section")
    candidates = ([recipe.student_path] if recipe.distill else []) + list(variants)
    tasks, runtime = TaskSettings(limit=recipe.eval.limit), RuntimeSettings(batch_size=recipe.eval.batch_size)
    out = recipe.out / "eval"
    rows = suite_rows(recipe.teacher, candidates, tasks, runtime, out, report=report)
    return {"retention": rows, "samples": stored_samples(out, rows, recipe.eval.answers)}


def run_bench(recipe: Recipe, variants: Sequence[Path], report: Report) -> Row:
    """Measured and predicted rows of the student and its variants, under the key "speed".

    Raises ValueError if the recipe has no bench section.
    """
    if recipe.bench is None:
        raise ValueError("the recipe has no bench section")
    paths = [recipe.student_path, *variants]
    measured, predicted = bench_rows(paths, *bench_settings(recipe.bench), report)
    return {"speed": [*measured, *predicted]}


def bench_settings(bench: BenchPart) -> tuple[Timing, Resources, Prediction]:
    """The settings of `bench` in a recipe. A setting that the recipe leaves out has its default."""
    timing = Timing(
        runtime=bench.runtime,
        quick=bench.quick,
        prompt_tokens=bench.prompt_tokens,
        new_tokens=bench.new_tokens,
        batch_size=bench.batch_size,
        repeats=bench.repeats,
    )
    return timing, Resources(gpu_memory=bench.gpu_memory), Prediction(hardware=bench.hardware)


def write_page(page: Path, variants: Sequence[str], results: Sequence[Path], limits: Limits) -> Row:
    """Write report.html and report.json from the result files; returns the content of report.json."""
    rows: Row = {key: value for file in results for key, value in read_json(file).items() if key != "findings"}
    findings = [read_json(check_file(page.parent, name))["findings"] for name in variants]
    triples = zip(variants, rows["compare"][1:], findings, strict=True)
    verdicts = [make_verdict(name, row, broken, limits) for name, row, broken in triples]
    shown = {key: value for key, value in rows.items() if key not in ("compare", "distill")}
    limited = {name: limit for name, limit in limits.items() if limit is not None}
    write_report(page, ReportData(rows["compare"], verdicts=verdicts, limits=limited, **shown))
    rows["verdicts"] = verdicts
    text = json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    write_atomic(page.with_suffix(".json"), text.encode(), kind=TABLE)
    return rows


def make_verdict(name: str, row: CompareRow, findings: Sequence[Row], limits: Limits) -> VerdictRow:
    """The verdict on a variant: it passes if it breaks no rule and no limit.

    `reason` has the first broken rule and every broken limit.
    """
    errors = [finding for finding in findings if finding["level"] == "error"]
    reasons = [f"breaks rule {error['rule']}" for error in errors[:1]]
    reasons += broken_limits(row, limits)
    verdict: VerdictRow = {
        "name": name,
        "passed": not reasons,
        "reason": "; ".join(reasons) or None,
        "check_errors": len(errors),
    }
    if reasons:
        verdict["cure"] = HELP_DAMAGE if errors else cure(row, limits)
    return verdict

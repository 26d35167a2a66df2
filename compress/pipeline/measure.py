"""The measurements of a recipe. The functions return plain rows for result files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.checkpoint.read import Checkpoint
from compress.core.report import Report
from compress.evaluate.drift.compare import compare_with_teacher
from compress.evaluate.drift.windows import evaluation_windows
from compress.evaluate.speed.measure import bench_rows
from compress.evaluate.speed.settings import Prediction, Resources, Timing
from compress.evaluate.tasks.job import suite_rows
from compress.evaluate.tasks.samples import stored_samples
from compress.evaluate.tasks.settings import RuntimeSettings, TaskSettings
from compress.pipeline.models import OpenCheckpoints
from compress.recipe import BenchPart, Recipe

Row = dict[str, Any]


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

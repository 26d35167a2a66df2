"""run_recipe(): distill, quantize, check, verify, compare and report, from one file.

A stage is skipped if its output is complete and the same command made it with the same settings from the same inputs.
`stages.json` in the recipe's folder stores the settings and digests behind every output.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from calibration.corpus import source_digest
from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.hub import resolve_model
from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import RECORD, Checkpoint, read_json
from compress.checkpoint.write import write_json
from compress.core.atomic import file_errors, write_atomic
from compress.core.changes import changed_keys
from compress.core.errors import QCompressError
from compress.core.interrupt import RESUME, on_interrupt
from compress.core.lock import output_lock
from compress.core.rows import CompareRow, VerdictRow
from compress.distill.config import DistillConfig, LoopConfig
from compress.distill.job import distill_checkpoint
from compress.distill.student.plan import make_plan as make_distill_plan
from compress.distill.student.plan import plan_row as distill_plan_row
from compress.evaluate.drift.compare import compare_with_teacher
from compress.evaluate.drift.limits import HELP_DAMAGE, broken_limits, cure
from compress.evaluate.drift.windows import evaluation_windows
from compress.evaluate.report import ReportData, check_replaceable, write_report
from compress.evaluate.tasks.job import suite_rows
from compress.evaluate.tasks.samples import stored_samples
from compress.evaluate.tasks.settings import RuntimeSettings, TaskSettings
from compress.quantize.auto import quantize
from compress.quantize.job import RunOptions, plan_without_weights
from compress.quantize.layout.plan import plan_row
from compress.recipe import Recipe, VariantSection

Row = dict[str, Any]
Report = Callable[[Row], None]
STAGES = "stages.json"
PAGE, RESULTS = "report.html", "report.json"


class OpenCheckpoints(dict[Path, Checkpoint]):
    """Checkpoints by path, each opened at first use. Remove the entry of a path before writing there."""

    def __missing__(self, path: Path) -> Checkpoint:
        self[path] = open_causal_lm(path)
        return self[path]


@dataclass(frozen=True)
class RecipeStage:
    """One checkpoint to write: its name and folder, everything it depends on, and the call that writes it."""

    name: str
    out: Path
    command: str
    settings: Row
    sources: tuple[Path, ...]
    texts: tuple[str, ...]
    make: Callable[[], object]

    def inputs(self, checkpoints: OpenCheckpoints) -> Row:
        """Everything that the output's bytes depend on; checkpoints and texts by their digests."""
        return {
            "command": self.command,
            "settings": json.loads(json.dumps(self.settings, default=str)),
            "sources": [checkpoints[source].digest for source in self.sources],
            "texts": {text: source_digest(text) for text in self.texts},
            "version": version("qcompress"),
        }


def run_recipe(recipe: Recipe, *, restart: bool = False, report: Report = lambda row: None) -> Row:
    """Run all stages; returns {"compare", "teacher", "distill", "verdicts", "report"}. Finished stages are skipped.

    `restart` removes outputs that were made with other settings or inputs; without it, such an output is an error.
    Sizes and texts are checked before the first stage. A variant that breaks a rule or exceeds a limit has a verdict
    with the reason.
    """
    recipe = recipe.model_copy(update={"teacher": resolve_model(recipe.teacher)})
    plan_recipe(recipe)
    checkpoints = OpenCheckpoints()
    stages = make_stages(recipe, checkpoints, report, restart=restart)
    for text in {recipe.verify.eval_text, *(text for stage in stages for text in stage.texts)}:
        source_digest(text)  # CalibrationError for a text that cannot be read
    with output_lock(recipe.out), on_interrupt(lambda: kept(recipe.out)):
        check_results_ours(recipe.out)
        for stage in stages:
            run_stage(stage, recipe.out, checkpoints, restart=restart, report=report)
        return write_results(recipe, checkpoints, report)


def kept(out: Path) -> str | None:
    """What an interrupt leaves, as one line; None if no stage has finished."""
    return f"finished stages are kept in {out}; {RESUME}" if (out / STAGES).is_file() else None


def check_results_ours(out: Path) -> None:
    """Raise QCompressError for results of another program, which the report would overwrite."""
    check_replaceable(out / PAGE)
    if (out / RESULTS).exists() and not (out / STAGES).is_file():
        raise QCompressError(f"{out / RESULTS}: exists and was not made by `qcompress run`; set another `out`")


def write_results(recipe: Recipe, checkpoints: OpenCheckpoints, report: Report) -> Row:
    """Compare all variants with the student and write report.html and report.json; returns run_recipe's result."""
    student, variants = checkpoints[recipe.student_path], [recipe.variant_path(part) for part in recipe.quantize]
    rows = compare_variants(recipe, checkpoints, [checkpoints[path] for path in variants], report)
    pairs = zip(variants, rows["compare"][1:], strict=True)
    verdicts = [make_verdict(recipe, student, checkpoints[path], row) for path, row in pairs]
    limits = {name: limit for name, limit in drift_limits(recipe).items() if limit is not None}
    page = recipe.out / PAGE
    tasks = run_tasks(recipe, variants, report)
    data = ReportData(rows["compare"], teacher=rows.get("teacher"), verdicts=verdicts, limits=limits, **tasks)
    write_report(page, data)
    rows |= tasks
    with file_errors(recipe.out / RESULTS):
        write_json(recipe.out / RESULTS, rows | {"verdicts": verdicts})
    return {**rows, "verdicts": verdicts, "report": str(page)}


def make_stages(
    recipe: Recipe, checkpoints: OpenCheckpoints, report: Report, *, restart: bool = False
) -> list[RecipeStage]:
    """The distillation if the recipe has one, then every variant of its student."""
    config = recipe.distill_config()
    distillation = [] if config is None else [distill_stage(recipe, config, checkpoints, report, restart)]
    return distillation + [quantize_stage(recipe, part, checkpoints, report, restart) for part in recipe.quantize]


def distill_stage(
    recipe: Recipe, config: DistillConfig, checkpoints: OpenCheckpoints, report: Report, restart: bool
) -> RecipeStage:
    """The stage that writes the student."""

    def make() -> object:
        samples, seq_len = recipe.verify.samples, recipe.verify.seq_len
        loop = LoopConfig(restart=restart, eval_samples=samples, eval_seq_len=seq_len)
        return distill_checkpoint(checkpoints[recipe.teacher], recipe.student_path, config, report, loop=loop)

    sources = (recipe.teacher, *([Path(config.student)] if config.student else []))
    return RecipeStage("student", recipe.student_path, "distill", config.settings(), sources, config.texts, make)


def quantize_stage(
    recipe: Recipe, part: VariantSection, checkpoints: OpenCheckpoints, report: Report, restart: bool
) -> RecipeStage:
    """The stage that writes one 4-bit variant."""
    source, out, config = recipe.student_path, recipe.variant_path(part), part.config()

    def make() -> object:
        return quantize(checkpoints[source], out, config, RunOptions(restart=restart, report=report))

    return RecipeStage(part.name, out, "quantize", asdict(config), (source,), config.text, make)


def run_stage(stage: RecipeStage, folder: Path, checkpoints: OpenCheckpoints, *, restart: bool, report: Report) -> None:
    """Write the stage's output, unless it exists and its inputs are unchanged."""
    state = read_json(folder / STAGES) if (folder / STAGES).is_file() else {}
    inputs = stage.inputs(checkpoints)
    if stage.out.exists():
        changes = describe_changes(state.get(stage.name), inputs, stage.out, checkpoints)
        if not changes:
            report({"stage": stage.name, "skipped": "unchanged", "out": str(stage.out)})
            return
        remove_output(stage.out, changes, restart=restart)
        checkpoints.pop(stage.out, None)
    report({"stage": stage.name, "command": stage.command, "out": str(stage.out)})
    folder.mkdir(parents=True, exist_ok=True)
    stage.make()
    write_state(folder, state | {stage.name: inputs | {"output": checkpoints[stage.out].digest}})


def remove_output(out: Path, changes: str, *, restart: bool) -> None:
    """Remove an outdated output. QCompressError without `restart`, or if another program made the output."""
    if not restart:
        raise QCompressError(f"{out}: {changes}; use --restart to make it again, or set another `out`")
    if not (out / RECORD).is_file():
        raise QCompressError(f"{out}: was not made by qcompress, so it is not removed; set another `out`")
    shutil.rmtree(out)


def write_state(folder: Path, state: Row) -> None:
    write_atomic(folder / STAGES, (json.dumps(state, indent=2, ensure_ascii=False) + "\n").encode())


def describe_changes(stored: Row | None, inputs: Row, out: Path, checkpoints: OpenCheckpoints) -> str:
    """The differences between the stored and the present inputs of an output, in words; "" if there are none."""
    if stored is None:
        return "was not made by this recipe, or its run was interrupted"
    if stored.get("output") != checkpoints[out].digest:
        return "the weights have changed since they were written"
    old, new = stored.get("settings", {}), inputs["settings"]
    names = [f"{key} ({old.get(key)} → {new.get(key)})" for key in changed_keys(old, new)]
    names += [key for key in ("command", "sources", "texts", "version") if stored.get(key) != inputs[key]]
    return f"was made with other {', '.join(names)}" if names else ""


def compare_variants(
    recipe: Recipe, checkpoints: OpenCheckpoints, variants: Sequence[Checkpoint], report: Report
) -> Row:
    """{"compare"}: the rows of the student and all variants; with a distillation also "teacher", and "distill".

    "distill" is the row of the student's record.
    """
    student = checkpoints[recipe.student_path]
    verify, teacher = recipe.verify, checkpoints[recipe.teacher] if recipe.distill else None
    first, others = (student, variants) if teacher is None else (teacher, [student, *variants])
    samples, seq_len = verify.samples, verify.seq_len
    windows = evaluation_windows(first, others, verify.eval_text, n_samples=samples, seq_len=seq_len, fit=True)
    rows = compare_with_teacher(teacher, student, variants, windows, report=report)
    if teacher is None:
        return {"compare": rows}
    return {"compare": rows[1:], "teacher": rows[0], "distill": (student.record.get("rows") or [{}])[0]}


def run_tasks(recipe: Recipe, variants: Sequence[Path], report: Report) -> Row:
    """{"retention", "samples"}: scores of the student and its variants against the teacher, and stored answers.

    Empty without an `eval` section. A recipe without a distillation compares its variants with the teacher.
    """
    if recipe.eval is None:
        return {}
    candidates = ([recipe.student_path] if recipe.distill else []) + list(variants)
    tasks, runtime = TaskSettings(limit=recipe.eval.limit), RuntimeSettings(batch_size=recipe.eval.batch_size)
    out = recipe.out / "eval"
    rows = suite_rows(recipe.teacher, candidates, tasks, runtime, out, report=report)
    return {"retention": rows, "samples": stored_samples(out, rows, recipe.eval.answers)}


def drift_limits(recipe: Recipe) -> dict[str, float | None]:
    return {"max_kl": recipe.verify.max_kl, "max_perplexity_ratio": recipe.verify.max_perplexity_ratio}


def make_verdict(recipe: Recipe, student: Checkpoint, variant: Checkpoint, row: CompareRow) -> VerdictRow:
    """Whether a variant breaks no rule and no limit; `reason` has the first broken rule and every broken limit."""
    errors = [row for row in check_checkpoint(variant, source=student) if row["level"] == "error"]
    reasons, limits = [f"breaks rule {error['rule']}" for error in errors[:1]], drift_limits(recipe)
    reasons += broken_limits(row, limits)
    verdict: VerdictRow = {
        "name": variant.path.name,
        "passed": not reasons,
        "reason": "; ".join(reasons) or None,
        "check_errors": len(errors),
    }
    if reasons:
        verdict["cure"] = HELP_DAMAGE if errors else cure(row, limits)
    return verdict


def plan_recipe(recipe: Recipe) -> list[Row]:
    """The plan of every stage: parameters, exact bytes, memory, tokens. Reads config.json files only."""
    model = read_json(recipe.teacher_config or resolve_model(recipe.teacher) / "config.json")
    rows: list[Row] = []
    config = recipe.distill_config()
    if config is not None:
        file = recipe.student_config or (Path(config.student) / "config.json" if config.student else None)
        plan = make_distill_plan(model, config, read_json(file) if file else None)
        rows.append({"stage": "student", **distill_plan_row(plan, config)})
        model = plan.student | {"dtype": config.dtype}  # as it will be stored
    return rows + [plan_variant(recipe, part, model) for part in recipe.quantize]


def plan_variant(recipe: Recipe, part: VariantSection, model: Row) -> Row:
    """The plan of one variant of the student with config.json `model`."""
    config, name = part.config(), str(recipe.student_path)
    return {"stage": part.name, **plan_row(name, plan_without_weights(name, model, config), config)}

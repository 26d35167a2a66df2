"""run_recipe(): distill, quantize, check, verify, compare, report, from one file.

A stage is skipped when its output is whole and was made by the same command with the same settings from the same
inputs. What made an output is kept beside it, in `stages.json`.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from calibration.corpus import source_digest
from compress.checkpoint.check.run import check_checkpoint
from compress.checkpoint.read import RECORD, Checkpoint, read_json
from compress.checkpoint.write import write_json
from compress.core.atomic import write_whole
from compress.core.errors import QCompressError
from compress.distill.config import LoopConfig
from compress.distill.job import distill_checkpoint
from compress.distill.student.plan import make_plan as make_distill_plan
from compress.distill.student.plan import plan_row as distill_plan_row
from compress.evaluate.drift.compare import compare_rows
from compress.evaluate.drift.limits import broken_limits
from compress.evaluate.drift.windows import evaluation_windows
from compress.evaluate.report import Facts, write_report
from compress.quantize.auto import quantize
from compress.quantize.job import plan_without_weights
from compress.quantize.layout.plan import plan_row
from compress.recipe import QuantizePart, Recipe

Row = dict[str, Any]
Report = Callable[[Row], None]
STAGES = "stages.json"


@dataclass(frozen=True)
class RecipeStage:
    """One checkpoint to make: its name and place, what it depends on, and how it is made."""

    name: str
    out: Path
    command: str
    settings: Row
    sources: tuple[Path, ...]
    texts: tuple[str, ...]
    make: Callable[[], object]

    def inputs(self) -> Row:
        """Everything the output follows from, by digest."""
        texts = {text: source_digest(text) for text in self.texts}
        return {
            "command": self.command,
            "settings": json.loads(json.dumps(self.settings, default=str)),
            "sources": [Checkpoint(source).digest for source in self.sources],
            "texts": texts,
            "version": version("qcompress"),
        }


def run_recipe(recipe: Recipe, *, force: bool = False, report: Report = lambda row: None) -> Row:
    """All stages of `recipe`; returns {"compare", "distill", "verdicts", "report"}. Finished stages are not run again.

    `force` removes outputs that other settings or inputs made; without it they are refused by name. A variant that
    breaks a rule of the validator or passes a limit has a verdict that says so. Sizes and texts are asked for before
    the first stage.
    """
    plan_recipe(recipe)
    stages = make_stages(recipe, report, force=force)
    for text in {recipe.verify.text, *(text for stage in stages for text in stage.texts)}:
        source_digest(text)
    for stage in stages:
        run_stage(stage, recipe.out, force=force, report=report)
    variants = [recipe.variant_path(part) for part in recipe.quantize]
    rows = judge(recipe, variants, report)
    pairs = zip(variants, rows["compare"][1:], strict=True)
    verdicts = [verdict(recipe, path, row) for path, row in pairs]
    limits = {name: limit for name, limit in drift_limits(recipe).items() if limit is not None}
    page = recipe.out / "report.html"
    write_report(page, Facts(rows["compare"], verdicts=verdicts, limits=limits))
    write_json(recipe.out / "report.json", rows | {"verdicts": verdicts})
    return {**rows, "verdicts": verdicts, "report": str(page)}


def make_stages(recipe: Recipe, report: Report, *, force: bool = False) -> list[RecipeStage]:
    """The distillation if there is one, then every variant of its student; `force` begins interrupted ones anew."""
    stages = []
    settings = recipe.distill_config()
    if settings is not None:
        stages.append(
            RecipeStage(
                "student",
                recipe.student_path,
                "distill",
                settings.settings(),
                (recipe.teacher, *([Path(settings.student)] if settings.student else [])),
                settings.texts,
                lambda: distill_checkpoint(
                    recipe.teacher, recipe.student_path, settings, report, loop=LoopConfig(restart=force)
                ),
            )
        )
    return stages + [quantize_stage(recipe, part, report, force) for part in recipe.quantize]


def quantize_stage(recipe: Recipe, part: QuantizePart, report: Report, force: bool) -> RecipeStage:
    source, out = recipe.student_path, recipe.variant_path(part)
    dtype = getattr(torch, part.dtype) if part.dtype else None

    def make() -> object:
        texts = part.text
        return quantize(source, out, part.config(), text=texts, dtype=dtype, restart=force, report=report)

    settings = asdict(part.config()) | {"dtype": part.dtype}
    return RecipeStage(part.name, out, "quantize", settings, (source,), tuple(part.text), make)


def run_stage(stage: RecipeStage, folder: Path, *, force: bool, report: Report) -> None:
    """Make the stage's output, unless it is there and what it followed from is unchanged."""
    state = read_json(folder / STAGES) if (folder / STAGES).is_file() else {}
    inputs = stage.inputs()
    known = state.get(stage.name)
    if stage.out.exists():
        changed = differences(known, inputs, stage.out)
        if not changed:
            report({"stage": stage.name, "skipped": "unchanged", "out": str(stage.out)})
            return
        if not force:
            raise QCompressError(f"{stage.out}: {changed}; use --force to make it again, or another `out`")
        if not (stage.out / RECORD).is_file():
            raise QCompressError(f"{stage.out}: was not made by qcompress, so it is not removed; give another `out`")
        shutil.rmtree(stage.out)
    report({"stage": stage.name, "command": stage.command, "out": str(stage.out)})
    folder.mkdir(parents=True, exist_ok=True)
    stage.make()
    write_state(folder, state | {stage.name: inputs | {"output": Checkpoint(stage.out).digest}})


def write_state(folder: Path, state: Row) -> None:
    write_whole(folder / STAGES, (json.dumps(state, indent=2, ensure_ascii=False) + "\n").encode())


def differences(known: Row | None, inputs: Row, out: Path) -> str:
    """What differs between how an output was made and how it would be made now, in words; "" when nothing does."""
    if known is None:
        return "was not made by this recipe, or its run was interrupted"
    if known.get("output") != Checkpoint(out).digest:
        return "holds other weights than were written"
    old, new = known.get("settings", {}), inputs["settings"]
    names = [f"{k} ({old.get(k)} → {new.get(k)})" for k in {**old, **new} if old.get(k) != new.get(k)]
    names += [key for key in ("command", "sources", "texts", "version") if known.get(key) != inputs[key]]
    return f"was made with other {', '.join(names)}" if names else ""


def judge(recipe: Recipe, variants: Sequence[Path], report: Report) -> Row:
    """The comparison of all variants with the student, and of the student with its teacher where it was distilled."""
    student, limits = recipe.student_path, recipe.verify
    windows = evaluation_windows(student, variants, limits.text, n_samples=limits.windows, seq_len=limits.seq_len)
    rows: Row = {"compare": compare_rows(student, variants, windows, report=report)}
    if recipe.distill is not None:
        rows["distill"] = (Checkpoint(student).record.get("rows") or [{}])[0]
    return rows


def drift_limits(recipe: Recipe) -> dict[str, float | None]:
    return {"max_kl": recipe.verify.max_kl, "max_perplexity_ratio": recipe.verify.max_perplexity_ratio}


def verdict(recipe: Recipe, path: Path, row: Row) -> Row:
    """Whether a variant passes the validator and keeps the limits, and the first reason why not."""
    errors = [row for row in check_checkpoint(path, source=recipe.student_path) if row["level"] == "error"]
    reasons = [f"breaks rule {error['rule']}" for error in errors[:1]]
    reasons += broken_limits(row, drift_limits(recipe))
    return {"name": path.name, "passed": not reasons, "reason": "; ".join(reasons) or None, "check_errors": len(errors)}


def plan_recipe(recipe: Recipe) -> list[Row]:
    """What every stage will make: parameters, exact bytes, memory, tokens. Needs config.json files only."""
    rows: list[Row] = []
    model = read_json(recipe.teacher_config or recipe.teacher / "config.json")
    settings = recipe.distill_config()
    if settings is not None:
        file = recipe.student_config or (Path(settings.student) / "config.json" if settings.student else None)
        plan = make_distill_plan(model, settings, read_json(file) if file else None)
        rows.append({"stage": "student", **distill_plan_row(plan, settings)})
        model = plan.student
    for part in recipe.quantize:
        config = part.config()
        dtype = getattr(torch, part.dtype) if part.dtype else None
        planned = plan_without_weights(str(recipe.student_path), model, config, dtype=dtype)
        rows.append({"stage": part.name, **plan_row(str(recipe.student_path), planned, config)})
    return rows

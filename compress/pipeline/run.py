"""run_recipe() and dry_run(): decide for every stage of a recipe, then write what is missing or out of date."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoint.door.files import RECORD, read_json
from compress.core.atomic import check_parent
from compress.core.errors import QCompressError
from compress.core.interrupt import RESUME, on_interrupt
from compress.core.lock import output_lock
from compress.core.report import Report, silent
from compress.pipeline.digests import Digests
from compress.pipeline.models import OpenCheckpoints, resolve_models
from compress.pipeline.plan import plan_recipe
from compress.pipeline.quantize import check_ready
from compress.pipeline.stage import TABLE, Action, BuildState, Decision, RecipeStage, decide, is_foreign, refuse
from compress.pipeline.stages import Stages
from compress.pipeline.state import STATE, load_state, replaced, save_state

if TYPE_CHECKING:
    from compress.recipe import Recipe

Row = dict[str, Any]


class Build:
    """A recipe, its stages, and what is stored about their last run."""

    def __init__(self, recipe: "Recipe", report: Report) -> None:
        self.recipe, self.report = recipe, report
        self.state: BuildState = load_state(recipe.out)
        self.digests = Digests(self.state.files)
        self.checkpoints = OpenCheckpoints(self.digests)
        self.stages = Stages(recipe, self.checkpoints, report).all()

    def decisions(self, *, restart: bool = False) -> list[Decision]:
        """What happens to each stage. With `restart`, every output that qcompress wrote is made again."""
        remade: set[Path] = set()
        decisions = []
        for stage in self.stages:
            decision = decide(stage, self.state, self.digests, remade)
            if restart and stage.out.exists():
                decision = restarted(stage, decision)
            remade |= {stage.out} if decision.action is Action.MAKE else set()
            decisions.append(decision)
        return decisions

    def make(self, stage: RecipeStage, decision: Decision, *, restart: bool) -> None:
        """Write one output and record it. An interrupted run with the same inputs is continued."""
        self.report({"stage": stage.name, "command": stage.command, "reason": decision.reason, "out": str(stage.out)})
        inputs = stage.inputs(self.digests)
        discard = restart or self.state.started.get(stage.name, inputs) != inputs
        self.state.started[stage.name] = inputs
        save_state(self.recipe.out, self.state, self.digests)
        self.checkpoints.pop(stage.out, None)
        with replaced(stage):
            stage.make(discard)
        self.record(stage, inputs)

    def skip(self, stage: RecipeStage, decision: Decision) -> None:
        """Report a stage that is up to date.

        An earlier run may have ended after it wrote the output. The output is then recorded now.
        """
        self.report({"stage": stage.name, "skipped": decision.reason, "out": str(stage.out)})
        if stage.name not in self.state.finished:
            self.record(stage, stage.inputs(self.digests))

    def record(self, stage: RecipeStage, inputs: Row) -> None:
        """Store the inputs and the digest of a finished output."""
        self.state.finished[stage.name] = {"inputs": inputs, "output": self.digests.output(stage.out)}
        self.state.started.pop(stage.name, None)
        save_state(self.recipe.out, self.state, self.digests)


def restarted(stage: RecipeStage, decision: Decision) -> Decision:
    """The decision with --restart on an output that exists: make it again, unless another program wrote it."""
    return refuse(stage, decision.reason) if is_foreign(stage) else Decision(Action.MAKE, "--restart")


def run_recipe(recipe: "Recipe", *, restart: bool = False, report: Report = silent) -> Row:
    """Run the stages that are missing or out of date; returns the content of report.json and "report", its HTML file.

    All decisions, sizes and texts are checked before the first stage. A variant that breaks a rule or exceeds a limit
    has a verdict with the reason. `restart` makes every stage again.
    Raises QCompressError if an output was not made by this recipe or was changed afterwards.
    """
    recipe = resolve_models(recipe)
    check_parent(recipe.out)
    with output_lock(recipe.out), on_interrupt(lambda: kept(recipe.out)):
        build = Build(recipe, report)
        decisions = build.decisions(restart=restart)
        check_decisions(build, decisions)
        for stage, decision in zip(build.stages, decisions, strict=True):
            if decision.action is Action.MAKE:
                build.make(stage, decision, restart=restart)
            else:
                build.skip(stage, decision)
        return read_results(recipe)


def kept(out: Path) -> str | None:
    """A line about the outputs that are kept after an interrupt, or None if no stage has finished."""
    return f"finished stages are kept in {out}; {RESUME}" if (out / STATE).is_file() else None


def check_decisions(build: Build, decisions: Sequence[Decision]) -> None:
    """Raises QCompressError if a stage is refused. If a stage will be made, `check_before_work` runs."""
    for stage, decision in zip(build.stages, decisions, strict=True):
        if decision.action is Action.REFUSE:
            raise QCompressError(f"{stage.out}: {decision.reason}")
    TABLE.check(build.recipe.out / "report.json")
    if any(decision.action is Action.MAKE for decision in decisions):
        check_before_work(build)


def check_before_work(build: Build) -> None:
    """Plan all checkpoints, find all backends and read all texts, so that a fault is found before the first stage."""
    check_hardware(build.recipe)
    plan_recipe(build.recipe)
    for part in build.recipe.quantize:
        check_ready(part.config())
    for text in sorted({text for stage in build.stages for text in stage.texts}):
        build.digests.text(text)


def check_hardware(recipe: "Recipe") -> None:
    """Raises QCompressError, with the nearest name, if bench names a board that is not in the table."""
    from compress.evaluate.speed.hardware import find_hardware

    if recipe.bench:
        find_hardware(recipe.bench.hardware)


def read_results(recipe: "Recipe") -> Row:
    """The content of report.json, and "report": the path of the HTML file.

    Without variants there is no report; "distill" is then the only key.
    """
    page, record = recipe.out / "report.html", recipe.student_path / RECORD
    if recipe.quantize:
        return read_json(page.with_suffix(".json")) | {"report": str(page)}
    return {"distill": read_json(record)["rows"][0]} if recipe.distill else {}


def dry_run(recipe: "Recipe") -> list[Row]:
    """One row per stage, with the keys "stage", "command", "action" (skip, make or refuse) and "reason".

    The row of a checkpoint also has the keys of its plan. Raises QCompressError if a size or a shape is impossible.
    """
    check_hardware(recipe)
    plans = {row["stage"]: row for row in plan_recipe(recipe)}
    build = Build(resolve_models(recipe, planned=True), silent)
    pairs = zip(build.stages, build.decisions(), strict=True)
    return [
        {"stage": stage.name, "command": stage.command, "action": str(decision.action), "reason": decision.reason}
        | plans.get(stage.name, {})
        for stage, decision in pairs
    ]

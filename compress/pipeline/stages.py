"""The stages of a recipe in order: distill, quantize, check, compare, eval, bench, report. One function per stage."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.core.atomic import write_atomic
from compress.core.file_kind import REPORT, json_kind
from compress.pipeline.models import OpenCheckpoints
from compress.pipeline.quantize import quantize_by
from compress.pipeline.stage import RESULTS, RecipeStage, check_file, result_file

if TYPE_CHECKING:
    from compress.core.report import Report
    from compress.distill.config import DistillConfig
    from compress.recipe import Recipe, VariantSection

Row = dict[str, Any]
Sources = tuple[Path, ...]
Texts = tuple[str, ...]
RESULT_KEYS = {"check": "findings", "compare": "compare", "eval": "retention", "bench": "speed"}  # one key of each file


class Stages:
    """Makes the stages of one recipe. `checkpoints` opens each checkpoint once; `report` receives progress rows."""

    def __init__(self, recipe: "Recipe", checkpoints: OpenCheckpoints, report: "Report") -> None:
        self.recipe, self.checkpoints, self.report = recipe, checkpoints, report
        self.variants = [recipe.variant_path(part) for part in recipe.quantize]

    def all(self) -> list[RecipeStage]:
        """Every stage, each after the stages that it depends on."""
        recipe, config = self.recipe, self.recipe.distill_config()
        stages = [] if config is None else [self.distill(config)]
        stages += [self.quantize(part) for part in recipe.quantize]
        stages += [self.check(path) for path in self.variants]
        stages += [self.compare()] if self.variants else []
        stages += [self.eval()] if recipe.eval else []
        stages += [self.bench()] if recipe.bench else []
        results = [stage.out for stage in stages if not stage.writes_checkpoint]
        return [*stages, self.page(results)] if self.variants else stages

    def distill(self, config: "DistillConfig") -> RecipeStage:
        """The stage that writes the student."""
        recipe, verify = self.recipe, self.recipe.verify

        def make(restart: bool) -> object:
            from compress.distill.config import LoopConfig
            from compress.distill.job import distill_checkpoint

            loop = LoopConfig(restart=restart, eval_samples=verify.samples, eval_seq_len=verify.seq_len)
            teacher = self.checkpoints[recipe.teacher]
            return distill_checkpoint(teacher, recipe.student_path, config, self.report, loop=loop)

        sources = (recipe.teacher, *([Path(config.student)] if config.student else []))
        settings = config.settings() | {"eval_samples": verify.samples, "eval_seq_len": verify.seq_len}
        return RecipeStage("student", "distill", recipe.student_path, settings, make, sources, tuple(config.texts))

    def quantize(self, part: "VariantSection") -> RecipeStage:
        """The stage that writes one 4-bit variant."""
        source, out, config = self.recipe.student_path, self.recipe.variant_path(part), part.config()

        def make(restart: bool) -> object:
            from compress.quantize.job import RunOptions

            return quantize_by(self.checkpoints[source], out, config, RunOptions(restart=restart, report=self.report))

        return RecipeStage(part.name, "quantize", out, asdict(config), make, (source,), tuple(config.text))

    def check(self, variant: Path) -> RecipeStage:
        """The stage that checks one variant against the rules of its format and against its source."""
        source = self.recipe.student_path

        def rows() -> Row:
            from compress.checkpoint.check.run import check_checkpoint

            return {"findings": check_checkpoint(self.checkpoints[variant], source=self.checkpoints[source])}

        return self.result(check_file(self.recipe.out, variant.name), "check", {}, rows, sources=(variant, source))

    def compare(self) -> RecipeStage:
        """The stage that measures the drift of the student and its variants."""
        recipe, verify = self.recipe, self.recipe.verify
        settings = {"samples": verify.samples, "seq_len": verify.seq_len}

        def rows() -> Row:
            from compress.pipeline.measure import compare_variants

            return compare_variants(recipe, self.checkpoints, self.variants, self.report)

        out, texts = result_file(recipe.out, "compare"), (verify.eval_text,)
        return self.result(out, "compare", settings, rows, sources=self.models(), texts=texts)

    def eval(self) -> RecipeStage:
        """The stage in which every model solves the tasks."""
        settings = self.recipe.eval.model_dump() if self.recipe.eval else {}

        def rows() -> Row:
            from compress.pipeline.measure import run_tasks

            return run_tasks(self.recipe, self.variants, self.report)

        out = result_file(self.recipe.out, "eval")
        return self.result(out, "eval", settings, rows, sources=self.models())

    def bench(self) -> RecipeStage:
        """The stage that measures and predicts speed and memory."""
        settings = self.recipe.bench.model_dump() if self.recipe.bench else {}

        def rows() -> Row:
            from compress.pipeline.measure import run_bench

            return run_bench(self.recipe, self.variants, self.report)

        out, sources = result_file(self.recipe.out, "bench"), (self.recipe.student_path, *self.variants)
        return self.result(out, "bench", settings, rows, sources=sources)

    def page(self, results: Sequence[Path]) -> RecipeStage:
        """The stage that computes the verdicts and writes report.html and report.json. It reads no model."""
        out, verify = self.recipe.out / "report.html", self.recipe.verify
        limits = {"max_kl": verify.max_kl, "max_perplexity_ratio": verify.max_perplexity_ratio}

        def make(restart: bool) -> object:
            from compress.pipeline.page import write_page

            return write_page(out, [variant.name for variant in self.variants], results, limits)

        return RecipeStage(out.name, "report", out, limits, make, results=tuple(results), kind=REPORT)

    def models(self) -> tuple[Path, ...]:
        """The teacher, the student if there is a distillation, and all variants."""
        paths = [self.recipe.teacher, self.recipe.student_path, *self.variants]
        return tuple(dict.fromkeys(paths))

    def result(
        self, out: Path, command: str, settings: Row, rows: Callable[[], Row], *, sources: Sources, texts: Texts = ()
    ) -> RecipeStage:
        """A stage that writes `rows()` as a JSON file."""

        def make(restart: bool) -> None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(out, (json.dumps(rows(), indent=1, ensure_ascii=False) + "\n").encode(), kind=kind)

        kind = json_kind(RESULT_KEYS[command], option="`out`")
        return RecipeStage(f"{RESULTS}/{out.name}", command, out, settings, make, sources, texts, kind=kind)

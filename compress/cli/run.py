"""qcompress run: run all steps of a recipe, a YAML file."""

from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, print_written, report
from compress.cli.options import Command, dry_run_option, json_option, shared_option
from compress.core.errors import GateFailure, QCompressError

TRAINING = ("parameters", "float16_bytes", "steps", "best_step", "tokens_read", "stopped")  # keys not in the table
DECISION = ("stage", "command", "action", "reason")


@click.command("run", cls=Command)
@click.argument("recipe", type=click.Path(path_type=Path))
@shared_option("--restart", group="Run control", is_flag=True, help="Make every output again.")
@dry_run_option
@json_option
def command(recipe: Path, restart: bool, dry_run: bool, as_json: bool) -> None:
    """Run the recipe RECIPE.yaml: distill, quantize, check, compare, and write a report.

    A stage is skipped if its output is complete and nothing that it depends on has changed. A stage with a changed
    setting runs again, and so do all stages that depend on it. The exit code is 3 if a variant breaks a rule or exceeds
    a limit; the report is written in any case. --dry-run prints what would be made and why, with sizes, memory and
    tokens.

    \b
    qcompress run recipes/quickstart.yaml
    qcompress run recipes/qwen2.5-7b-to-1.5b.yaml --dry-run
    """
    from compress.recipe import load_recipe

    loaded = load_recipe(recipe)
    from compress import pipeline

    if dry_run:
        print_plan(pipeline.dry_run(loaded), as_json)
        return
    result = pipeline.run_recipe(loaded, restart=restart, report=report)
    print_result(result, as_json)
    for row in result.get("verdicts", ()):
        if not row["passed"]:
            raise GateFailure(f"{row['name']}: {row['reason']}; {row['cure']}; see {result['report']}")


def print_result(result: dict[str, Any], as_json: bool) -> None:
    """Print the distillation, the comparison, the verdicts and the closing line."""
    if as_json:
        emit(result, as_json=True)
        return
    if "distill" in result:
        emit({key: value for key, value in result["distill"].items() if key in TRAINING}, as_json=False)
    if "verdicts" not in result:
        return
    print_comparison(result)
    emit(result["verdicts"], as_json=False)
    passed = sum(row["passed"] for row in result["verdicts"])
    count = f"{passed} of {len(result['verdicts'])} variants passed"
    print_written(result["report"], count, next_command="open the report in a browser")


def print_comparison(result: dict[str, Any]) -> None:
    """The drift of all models as one table; with a distillation the teacher's row comes first."""
    from compress.evaluate.drift.cells import terminal_row

    rows, title = result["compare"], "compared with the 16-bit model"
    if "teacher" in result:
        rows, title = [result["teacher"], *rows], "teacher, 16-bit student, and variants compared with both"
    emit([terminal_row(row) for row in rows], as_json=False, title=title)


def print_plan(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print what happens to every stage, then the plan of every checkpoint.

    Raises QCompressError for a refused stage.
    """
    if as_json:
        emit(rows, as_json=True)
    else:
        emit([{key: row[key] for key in DECISION} for row in rows], as_json=False)
        for row in rows:
            if plan := {key: value for key, value in row.items() if key not in DECISION[1:]} if len(row) > 4 else {}:
                click.echo()
                emit(plan, as_json=False)
    for row in rows:
        if row["action"] == "refuse":
            raise QCompressError(f"{row['stage']}: {row['reason']}")

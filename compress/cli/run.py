"""qcompress run: a whole job from one file."""

from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, print_written, report
from compress.cli.options import Command, dry_run_option, json_option, shared_option
from compress.core.errors import GateFailure

TRAINING = ("parameters", "float16_bytes", "steps", "best_step", "tokens_read", "stopped")  # the table has the rest


@click.command("run", cls=Command)
@click.argument("recipe", type=click.Path(path_type=Path))
@shared_option(
    "--restart",
    group="Run control",
    is_flag=True,
    help="Replace outputs that were made with other settings or inputs.",
)
@dry_run_option
@json_option
def command(recipe: Path, restart: bool, dry_run: bool, as_json: bool) -> None:
    """Run the recipe RECIPE.yaml: distill, quantize, check, verify, compare, report.

    A stage is skipped if its output is complete and its settings and inputs are unchanged. The exit code is 3 if a
    variant breaks a rule or exceeds a limit; the report is written in any case. --dry-run prints the sizes, memory and
    tokens of every stage, and needs no weights.

    \b
    qcompress run recipes/quickstart.yaml
    qcompress run recipes/qwen2.5-7b-to-1.5b.yaml --dry-run
    """
    from compress.recipe import load_recipe

    loaded = load_recipe(recipe)
    from compress.pipeline import plan_recipe, run_recipe

    if dry_run:
        print_plan(plan_recipe(loaded), as_json)
        return
    result = run_recipe(loaded, restart=restart, report=report)
    print_result(result, as_json)
    for row in result["verdicts"]:
        if not row["passed"]:
            raise GateFailure(f"{row['name']}: {row['reason']}; {row['cure']}; see {result['report']}")


def print_result(result: dict[str, Any], as_json: bool) -> None:
    """The distillation, the comparison and the verdicts, then the closing line."""
    from compress.evaluate.drift.cells import terminal_row

    if as_json:
        emit(result, as_json=True)
        return
    rows, title = result["compare"], "compared with the 16-bit model"
    if "distill" in result:
        emit({key: value for key, value in result["distill"].items() if key in TRAINING}, as_json=False)
        rows, title = [result["teacher"], *rows], "teacher, 16-bit student, and variants compared with both"
    emit([terminal_row(row) for row in rows], as_json=False, title=title)
    emit(result["verdicts"], as_json=False)
    passed = sum(row["passed"] for row in result["verdicts"])
    count = f"{passed} of {len(result['verdicts'])} variants passed"
    print_written(result["report"], count, next_command="open the report in a browser")


def print_plan(rows: list[dict[str, Any]], as_json: bool) -> None:
    """The plan of every stage, separated by empty lines."""
    if as_json:
        emit(rows, as_json=True)
        return
    for row in rows:
        emit(row, as_json=False)
        click.echo()

"""qcompress run: a whole job from one file."""

from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, report
from compress.cli.options import json_option
from compress.core.errors import GateFailure


@click.command("run")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Make outputs again that other settings or inputs made.")
@click.option(
    "--dry-run", is_flag=True, help="Print every stage's sizes, memory and tokens, and stop. Needs no weights."
)
@json_option
def command(recipe: Path, force: bool, dry_run: bool, as_json: bool) -> None:
    """Run RECIPE.yaml: distill, quantize, check, verify, compare, report.

    A stage is skipped when its output is whole and its settings and inputs are unchanged. Ends with exit code 3 when
    a variant breaks a rule or passes a limit; the report is written all the same.

    \b
    qcompress run recipes/quickstart.yaml
    qcompress run recipes/qwen2.5-7b-to-1.5b.yaml --dry-run
    """
    from compress.cli.compare import shown
    from compress.recipe import load_recipe

    loaded = load_recipe(recipe)
    from compress.pipeline import plan_recipe, run_recipe

    if dry_run:
        show_plan(plan_recipe(loaded), as_json)
        return
    result = run_recipe(loaded, force=force, report=report)
    if as_json:
        emit(result, as_json=True)
    else:
        if "distill" in result:
            emit(result["distill"], as_json=False)
        emit([shown(row) for row in result["compare"]], as_json=False, title="against the FP16 student")
        emit(result["verdicts"], as_json=False)
        click.echo(f"report: {result['report']}")
    for row in result["verdicts"]:
        if not row["passed"]:
            raise GateFailure(f"{row['name']}: {row['reason']}; see {result['report']}")


def show_plan(rows: list[dict[str, Any]], as_json: bool) -> None:
    """The distillation's row by itself, then one line per variant."""
    if as_json:
        emit(rows, as_json=True)
        return
    for row in rows:
        emit(row, as_json=False)
        click.echo()

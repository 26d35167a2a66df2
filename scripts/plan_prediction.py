"""Fit and check the KL that `plan --measure` predicts: python scripts/plan_prediction.py MODEL... -o FILE.json

Every layout is written with every method, and its KL is measured as `verify` does. A method's share is the geometric
mean, over the models, of that KL over the KL of plain rounding that plan measures, on layouts without a packed head or
embedding. Each model is also predicted with the shares of all other models. If such a prediction is off by more than
--limit, the exit code is 3. Rows in FILE.json are not measured again.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from compress.checkpoint.door.files import read_json
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.write import write_json
from compress.cli.console import emit, report
from compress.core.config import METHODS, QuantizeConfig
from compress.core.errors import GateFailure
from compress.evaluate.drift.job import measure_drift
from compress.evaluate.drift.settings import DriftSettings
from compress.quantize.job import quantize_checkpoint
from compress.quantize.layout.plan import make_plan, read_source
from compress.quantize.layout.prediction import RoundingKl, predict_kl
from compress.quantize.layout.sensitivity import open_meter

Row = dict[str, Any]
LAYOUTS: dict[str, Row] = {
    "auto": {"format": "awq"},
    "head 4, embedding 8": {"format": "compressed-tensors", "head_bits": 4, "embedding_bits": 8},
    "group 32": {"format": "awq", "group_size": 32},
    "down_proj in 8 bits": {"format": "compressed-tensors", "eight_bit": ("down_proj",)},
}


def layout_rows(
    model: Path, layout: str, config: QuantizeConfig, methods: Sequence[str], evaluation: DriftSettings, work: Path
) -> list[Row]:
    """One row per method: the KL that verify measures, and the KL of plain rounding that plan measures."""
    source = read_source(model)
    rounding = open_meter(model, source).rounding_kl(make_plan(source, config))
    paths = {method: work / f"{model.name}-{method}" for method in methods}
    for method, path in paths.items():
        shutil.rmtree(path, ignore_errors=True)
        quantize_checkpoint(model, path, replace(config, method=method))
    checkpoints = [Checkpoint(path) for path in (model, *paths.values())]
    evaluation = replace(evaluation, reference_cache=work / f"{model.name}-states")
    measured = measure_drift(checkpoints, evaluation)[1:]
    rows = [
        {
            "model": model.name,
            "layout": layout,
            "method": method,
            "linears_kl": rounding.linears,
            "tables_kl": rounding.tables,
        }
        for method in methods
    ]
    figures = ("kl", "kl_se", "tokens", "bytes")
    return [row | {key: dict(one)[key] for key in figures} for row, one in zip(rows, measured, strict=True)]


def fit_shares(rows: Sequence[Row]) -> dict[str, float]:
    """For each method in the rows, the geometric mean over the models of verify's KL over that of plain rounding.

    Layouts with a packed head or embedding are left out: there the share is that of rtn.
    """
    logs: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if not row["tables_kl"]:
            log = math.log(row["kl"] / row["linears_kl"])
            logs.setdefault(row["method"], {}).setdefault(row["model"], []).append(log)
    return {method: math.exp(fmean(map(fmean, by_model.values()))) for method, by_model in logs.items()}


def predict(rows: Sequence[Row]) -> list[Row]:
    """The rows with the KL that the shares of all other models predict, and the factor by which it is off.

    A row stays as it is if no other model was measured with its method.
    """
    predicted = []
    for row in rows:
        shares = fit_shares([one for one in rows if one["model"] != row["model"]])
        if row["method"] in shares:
            kl = predict_kl(RoundingKl(row["linears_kl"], row["tables_kl"]), shares)[row["method"]]
            row = {**row, "predicted_kl": kl, "off_by": math.exp(abs(math.log(kl / row["kl"])))}
        predicted.append(row)
    return predicted


def error_factor(rows: Sequence[Row]) -> float:
    """The factor within which 95 % of the predictions are: two standard deviations of the logarithms' errors."""
    return math.exp(2 * math.sqrt(fmean(math.log(row["off_by"]) ** 2 for row in rows if "off_by" in row)))


@click.command(help=__doc__)
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="JSON file. Kept rows are reused.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("build/plan-prediction"),
    show_default=True,
    help="Folder of checkpoints.",
)
@click.option("--samples", default=16, show_default=True, help="Calibration windows.")
@click.option("--seq-len", default=512, show_default=True, help="Tokens per calibration window.")
@click.option("--eval-samples", default=8, show_default=True, help="Evaluation windows.")
@click.option("--eval-seq-len", default=512, show_default=True, help="Tokens per evaluation window.")
@click.option(
    "--method", "methods", multiple=True, type=click.Choice(METHODS), default=METHODS, help="Only this one. Repeatable."
)
@click.option(
    "--layout", "layouts", multiple=True, type=click.Choice(list(LAYOUTS)), default=list(LAYOUTS), help="Only this one."
)
@click.option("--limit", default=1.5, show_default=True, help="Largest factor by which a prediction may be off.")
def main(
    models: tuple[Path, ...],
    out: Path,
    work: Path,
    methods: tuple[str, ...],
    layouts: tuple[str, ...],
    limit: float,
    **sizes: int,
) -> None:
    if len(models) < 2:
        raise click.UsageError("give two models or more: each is predicted from the others")
    evaluation = DriftSettings(samples=sizes["eval_samples"], seq_len=sizes["eval_seq_len"])
    calibration = {"samples": sizes["samples"], "seq_len": sizes["seq_len"]}
    rows: list[Row] = read_json(out)["rows"] if out.is_file() else []
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in sizes.items())
    command = f"scripts/plan_prediction.py {' '.join(map(str, models))} -o {out} {options}"
    about = {"date": f"{date.today()}", "command": command}
    finished = {(row["model"], row["layout"], row["method"]) for row in rows}
    for layout, model in product(layouts, models):
        missing = [method for method in methods if (model.name, layout, method) not in finished]
        if missing:
            config = QuantizeConfig(**calibration, **LAYOUTS[layout])
            rows += layout_rows(model, layout, config, missing, evaluation, work)
            report({"model": model.name, "layout": layout, "kl": rows[-1]["kl"]})
            write_json(out, {**about, "rows": rows})
    rows = predict(rows)
    emit(rows, as_json=False)
    fit = {
        "shares": fit_shares(rows),
        "factor": error_factor(rows),
        "worst": max(row["off_by"] for row in rows if "off_by" in row),
    }
    write_json(out, {**about, **fit, "rows": rows})
    emit({**fit["shares"], "error_factor": fit["factor"], "worst": fit["worst"]}, as_json=False)
    if fit["worst"] > limit:
        raise GateFailure(f"a left-out model is predicted with a factor of {fit['worst']:.2f}, above {limit:g}")


if __name__ == "__main__":
    main()

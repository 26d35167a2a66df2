"""qcompress plan: every layout that vLLM loads, its exact size, and the least harmful one that fits."""

from pathlib import Path

import click

from compress.cli.console import emit, json_option, progress, report, results
from compress.core.config import FORMAT_NAMES, METHODS, QuantizeConfig, parse_size
from compress.core.errors import QCompressError

LOADERS = {"vllm-gpu": "vllm_gpu", "vllm-cpu": "vllm_cpu", "transformers": "transformers"}


@click.command("plan")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--max-size", help="Of the weight files: 2GB, 1.5GiB, 800MB.")
@click.option(
    "--format", "formats", type=click.Choice(FORMAT_NAMES), multiple=True, help="Only these.  [default: all three]"
)
@click.option("--method", type=click.Choice(METHODS), help="For the command line.  [default: the format's usual one]")
@click.option("--runs-in", type=click.Choice(list(LOADERS)), help="Only what this program can run.")
@click.option(
    "--dtype", type=click.Choice(["float16", "bfloat16"]), help="Of everything unquantized.  [default: the model's]"
)
@click.option("--measure", is_flag=True, help="Measure the harm on MODEL's weights; else layouts are ranked by bits.")
@click.option("--all", "show_all", is_flag=True, help="Also layouts that another beats in both size and harm.")
@json_option
def command(
    model: Path,
    max_size: str | None,
    formats: tuple[str, ...],
    method: str | None,
    runs_in: str | None,
    dtype: str | None,
    measure: bool,
    show_all: bool,
    as_json: bool,
) -> None:
    """List how MODEL can be packed: bits of linears, head and embedding, group sizes, formats.

    MODEL is a checkpoint, a folder with a config.json, or that file: without --measure no weights are read. Sizes are
    exact. Harm is the KL in nats that plain rounding costs with --measure, otherwise the mean rounding error, which
    only ranks. With --max-size the least harmful layout that fits is marked, and its command line printed; when none
    fits the exit code is 1.

    \b
    qcompress plan student --max-size 2GB
    qcompress plan smollm2 --measure --runs-in vllm-cpu
    """
    from compress.quantize.layout import budget
    from compress.quantize.layout.plan import read_source
    from compress.quantize.layout.sensitivity import measure_harm

    source = read_source(model, dtype)
    plans = []
    for name in formats or FORMAT_NAMES:
        config = QuantizeConfig(method=method or budget.METHOD_OF[name], format=name)
        plans += budget.plan_layouts(source, config, [name])
    if runs_in:
        plans = [(config, plan) for config, plan in plans if budget.loaders(plan)[LOADERS[runs_in]]]
    harm = measure_harm(model, source, plans, report) if measure else budget.estimated_harm(source)
    found = budget.rank(plans, harm)
    limit = parse_size(max_size) if max_size else None
    best = budget.choose(found, limit) if limit is not None else None
    shown = found if show_all else budget.worthwhile(found)
    rows = [budget.layout_row(each, limit) | ({"take": True} if each is best else {}) for each in shown]
    emit(rows, as_json=as_json)
    if best is not None:
        out = f"{model.stem if model.is_file() else model.name}-4bit"
        where = "MODEL" if model.is_file() else str(model)
        line = f"qcompress quantize {where} {budget.flags(best.config)} --out {out}"
        line += "  # MODEL: the folder with the weights" if model.is_file() else ""
        (progress if as_json else results).print(line, markup=False)
    elif limit is not None:
        raise QCompressError(f"{model}: {budget.nothing_fits(found, limit)}")

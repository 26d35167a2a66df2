"""qcompress plan: list the layouts that vLLM loads with their exact sizes, and recommend one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.console import emit, imports, progress, report, results
from compress.cli.model_path import MODEL
from compress.cli.options import Command, Parsed, device_option, json_option, shared_option
from compress.core.config import FORMAT_NAMES, KV_DTYPES, METHODS, STORAGE_DTYPES, QuantizeConfig, parse_size
from compress.core.errors import QCompressError
from compress.core.units import format_bytes
from compress.evaluate.speed.hardware import NAMES

if TYPE_CHECKING:
    from compress.core.rows import PlanRow
    from compress.quantize.layout.overview import Overview

ALSO_RUNS_IN = {"vllm_cpu": "CPU", "transformers": "transformers"}


@click.command("plan", cls=Command)
@click.argument("model", type=MODEL)
@shared_option(
    "--max-size",
    group="Essentials",
    type=Parsed(parse_size),
    metavar="SIZE",
    help="Largest size of the weight files: 2GB, 1.5GiB, 800MB.  [default: no limit]",
)
@shared_option(
    "--hardware",
    group="Prediction",
    type=click.Choice(NAMES),
    help="List only layouts that run on this board or GPU, in its memory and in the vLLM of its image.",
)
@shared_option(
    "--context",
    group="Prediction",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Tokens of a request on the board, prompt and answer together.",
)
@shared_option(
    "--requests",
    group="Prediction",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Requests that the board serves at once.",
)
@shared_option(
    "--kv-cache-dtype",
    group="Prediction",
    type=click.Choice(KV_DTYPES),
    default=KV_DTYPES[0],
    show_default=True,
    help="Dtype of the KV cache on the board. auto: the model's.",
)
@shared_option(
    "--measure",
    group="Essentials",
    is_flag=True,
    help="Read MODEL's weights, and predict the KL that verify will find for each layout and method.",
)
@shared_option("--all", "show_all", group="Essentials", is_flag=True, help="List all layouts instead of the first 8.")
@shared_option(
    "--format",
    "formats",
    group="Layout",
    type=click.Choice(FORMAT_NAMES),
    multiple=True,
    help="List only this format. Repeatable.  [default: all formats]",
)
@shared_option(
    "--runs-in",
    group="Layout",
    type=click.Choice(["vllm-gpu", "vllm-cpu", "transformers"]),
    help="List only layouts that this program loads.  [default: vllm-gpu]",
)
@shared_option(
    "--tensor-parallel-size",
    group="Layout",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of GPUs that will share each linear. List only group sizes that divide their slices.",
)
@shared_option(
    "--dtype",
    group="Layout",
    type=click.Choice(STORAGE_DTYPES),
    help="Dtype of all tensors that are not quantized.  [default: MODEL's dtype, or float16 if that is float32]",
)
@shared_option(
    "--method",
    group="Layout",
    type=click.Choice(METHODS),
    default=QuantizeConfig.method,
    show_default=True,
    help="Rounding method in the printed command line.",
)
@device_option
@json_option
def command(
    model: Path,
    max_size: int | None,
    measure: bool,
    show_all: bool,
    formats: tuple[str, ...],
    runs_in: str | None,
    tensor_parallel_size: int,
    dtype: str | None,
    method: str,
    device: str,
    as_json: bool,
    **place: Any,
) -> None:
    """List the 4-bit layouts of MODEL with exact sizes, and print the command for the recommended one.

    MODEL is a checkpoint, a folder with a config.json, or a config.json. Weights are not read without --measure. The
    first row, marked *, is recommended: plain 4 bits, as quantize writes by default, or with --max-size the least
    harmful layout that fits. With --hardware, the size is what the board leaves to the weights, and plain 4 bits are
    recommended if they fit. If no layout fits, the exit code is 1.

    \b
    qcompress plan student --max-size 2GB
    qcompress plan student --hardware orin-nano --context 4096 --requests 4
    qcompress plan smollm2 --measure --runs-in vllm-cpu
    """
    with imports():
        from compress.quantize.layout.budget import format_misfit
        from compress.quantize.layout.overview import make_overview, quantize_command
        from compress.quantize.layout.plan import read_source

    limits = board_limits(model, max_size, **place)
    overview = make_overview(
        model,
        read_source(model, dtype),
        formats=formats,
        config=QuantizeConfig(method=method, dtype=dtype, tensor_parallel_size=tensor_parallel_size),
        runs_in=runs_in,
        measure=measure,
        device=device,
        report=report,
        **limits,
    )
    print_overview(overview, show_all=show_all, as_json=as_json)
    if overview.recommended is None:
        raise QCompressError(f"{model}: {format_misfit(overview.candidates, overview.max_size or 0)}")
    print_command(quantize_command(model, overview.recommended.config), as_json=as_json)


def board_limits(
    model: Path, max_size: int | None, *, hardware: str | None, context: int, requests: int, kv_cache_dtype: str
) -> dict[str, Any]:
    """The arguments of `make_overview` that limit the layouts: to a size, and to those that a board takes."""
    if hardware is None:
        return {"max_size": max_size}
    from compress.ship.board_plan import board_limit

    limit = board_limit(model, hardware, context, requests, kv_cache_dtype)
    size = min(limit.size, max_size or limit.size)
    return {"max_size": size, "accept": limit.accept, "prefer_plain": max_size is None}


def print_overview(overview: "Overview", *, show_all: bool, as_json: bool) -> None:
    """Print the layouts as JSON or as a table. Notes follow the table if a layout is recommended."""
    shown = overview.shown(show_all=show_all)
    rows = overview.rows(shown, report)
    texts = [overview.harm_text(each) for each in shown]
    emit(rows if as_json else [table_row(*pair) for pair in zip(rows, texts, strict=True)], as_json=as_json)
    if overview.recommended is not None and not as_json:
        print_notes(rows[0], len(rows), len(overview.candidates))


def print_command(line: str, *, as_json: bool) -> None:
    """Print the command that makes the recommended layout. With --json it goes to stderr."""
    if as_json:
        progress.print(line, markup=False)
        return
    if " MODEL " in line:
        results.print("Replace MODEL by the folder with the weights:")
    results.print(line, markup=False)


def table_row(row: "PlanRow", harm: str) -> dict[str, object]:
    """The row of a layout in the terminal's table. The table is at most 108 columns wide.

    A measured row ends with one column per method, any other row with its harm and with what else loads the layout.
    """
    predicted = {method: f"{kl:.2g}" for method, kl in row.get("predicted_kl", {}).items()}
    loaders = ", ".join(name for key, name in ALSO_RUNS_IN.items() if dict(row)[key]) or "-"
    return {
        "size": ("* " if row.get("take") else "  ") + format_bytes(row["bytes"]),
        "head": row["head_bits"],
        "embed": row["embedding_bits"],
        "8 bits": "all" if " " in (row["eight_bit"] or "") else row["eight_bit"] or "-",
        "group": row["group_size"],
        "format": row["format"],
        **(predicted or {"harm": harm, "also runs in": loaders}),
    }


def print_notes(first: "PlanRow", shown: int, total: int) -> None:
    """Print an explanation of the table's words, and how to list more layouts."""
    size = format_bytes(first["source_bytes"])
    results.print(
        f'\n* is recommended. The model has {size} in 16 bits. Linears named under "8 bits" have 8, others 4.'
    )
    if factor := first.get("predicted_factor"):
        results.print(f"Columns named by a method predict the KL of verify in nats, within a factor of {factor:g}.")
    else:
        results.print("Harm is an estimate against plain 4 bits; --measure predicts the KL of verify.")
    results.print("Every layout runs in vLLM on a GPU.")
    if shown < total:
        results.print(f"--all lists all {total} layouts.")

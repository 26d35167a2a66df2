"""qcompress quantize: a 16-bit checkpoint in 4 bits."""

from pathlib import Path

import click

from compress.cli.console import emit, imports, json_option, report
from compress.core.config import AUTO, COMPUTE_DTYPES, DEFAULT_FORMAT, FORMAT_NAMES, METHODS, QuantizeConfig, parse_size
from compress.core.errors import QCompressError


@click.command("quantize")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Directory for the quantized checkpoint."
)
@click.option(
    "--method",
    type=click.Choice([*METHODS, AUTO]),
    required=True,
    help="How codes are chosen; auto tries all and keeps the best on held-out windows.",
)
@click.option(
    "--format", "format_name", type=click.Choice(FORMAT_NAMES), help="Layout on disk.  [default: the method's own]"
)
@click.option("--group-size", type=click.Choice(["auto", "128", "64", "32"]), default="auto", show_default=True)
@click.option("--sym/--asym", "sym", default=None, help="For compressed-tensors only; gptq is symmetric, awq is not.")
@click.option("--text", multiple=True, default=("default",), show_default=True, help="NAME or FILE, with =WEIGHT.")
@click.option("--samples", type=click.IntRange(1), default=128, show_default=True, help="Calibration windows.")
@click.option("--seq-len", type=click.IntRange(8), default=512, show_default=True, help="Tokens per window.")
@click.option(
    "--damp-percent", type=click.FloatRange(0, 1, True, True), default=QuantizeConfig.damp_percent, show_default=True
)
@click.option(
    "--error-correction",
    type=click.FloatRange(0, 1),
    default=QuantizeConfig.error_correction,
    show_default=True,
    help="Error-correction strength, 0 to 1: how far each layer compensates for the rounding errors of earlier layers. "
    "0 turns it off.",
)
@click.option(
    "--compute-dtype",
    type=click.Choice(COMPUTE_DTYPES),
    default=QuantizeConfig.compute_dtype,
    show_default=True,
    help="What blocks multiply in; auto is bfloat16 where a CPU multiplies it faster, and MODEL's own on a GPU.",
)
@click.option("--head-bits", type=click.Choice(["16", "8", "4"]), default="16", show_default=True)
@click.option(
    "--embedding-bits",
    type=click.Choice(["16", "8"]),
    default="16",
    show_default=True,
    help="8: compressed-tensors, and vLLM on a GPU.",
)
@click.option("--eight-bit", multiple=True, help="Linears in 8 bits, by a part of their path: mlp.down_proj, layers.0.")
@click.option("--max-size", help="Refuse, before any work, a result larger than this: 2GB, 1.5GiB, 800MB.")
@click.option(
    "--dtype", type=click.Choice(["float16", "bfloat16"]), help="Of everything unquantized.  [default: the model's]"
)
@click.option(
    "--tune",
    is_flag=False,
    flag_value=2,
    type=click.IntRange(0),
    default=0,
    help="After quantizing, train scales and norms for EPOCHS (default 2) to match MODEL's outputs; "
    "with --error-correction 0, train each block first.",
    metavar="[EPOCHS]",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--dry-run", is_flag=True, help="Print the plan, exact bytes included, and stop.")
@click.option(
    "--activation-memory",
    default="1GB",
    show_default=True,
    help="Beyond it, blocks run stage by stage: slower, same bits.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where blocks run and codes are chosen; auto takes a GPU when there is one.",
)
@click.option("--restart", is_flag=True, help="Remove the work of an interrupted run instead of going on with it.")
@json_option
def command(
    model: Path,
    out: Path,
    method: str,
    format_name: str | None,
    group_size: str,
    sym: bool | None,
    text: tuple[str, ...],
    samples: int,
    seq_len: int,
    damp_percent: float,
    error_correction: float,
    compute_dtype: str,
    head_bits: str,
    embedding_bits: str,
    eight_bit: tuple[str, ...],
    max_size: str | None,
    dtype: str | None,
    tune: int,
    seed: int,
    dry_run: bool,
    activation_memory: str,
    device: str,
    restart: bool,
    as_json: bool,
) -> None:
    """Quantize MODEL (a directory) to 4 bits and write a checkpoint that vLLM loads.

    Sizes are exact before any work starts; `qcompress plan` lists the layouts and what they weigh. The result passes
    `qcompress check`, or it is not written. A run that was killed goes on where it stood when the same command is given
    again.

    \b
    qcompress quantize smollm2 --method awq -o smollm2-awq
    qcompress quantize smollm2 --method gptq --group-size 64 --text notes.txt -o smollm2-gptq
    qcompress quantize student --method gptq --format compressed-tensors --head-bits 4 --embedding-bits 8 -o small
    qcompress quantize student --method awq+gptq --max-size 2GB --dry-run -o student-awq
    """
    config = QuantizeConfig(
        method=method,
        format=format_name or DEFAULT_FORMAT[method],
        group_size=0 if group_size == "auto" else int(group_size),
        sym=sym,
        damp_percent=damp_percent,
        error_correction=error_correction,
        compute_dtype=compute_dtype,
        samples=samples,
        seq_len=seq_len,
        tune=tune,
        seed=seed,
        max_size=parse_size(max_size) if max_size else None,
        head_bits=int(head_bits),
        embedding_bits=int(embedding_bits),
        eight_bit=eight_bit,
    )
    with imports():
        import torch

        from compress.quantize.auto import quantize
        from compress.quantize.job import plan_quantize
        from compress.quantize.layout.plan import plan_row
        from compress.quantize.processes import join_processes

    storage = getattr(torch, dtype) if dtype else None
    if dry_run:
        _, plan = plan_quantize(model, config, dtype=storage)
        emit(plan_row(str(model), plan, config), as_json=as_json)
        return
    processes = join_processes()
    row = quantize(
        model,
        out,
        config,
        text=text,
        dtype=storage,
        restart=restart,
        activation_memory=parse_size(activation_memory),
        device=pick_device(device, gpu=torch.cuda.is_available()),
        processes=processes,
        report=report,
    )
    processes.leave()
    if processes.rank == 0:
        emit(row, as_json=as_json)


def pick_device(wanted: str, *, gpu: bool) -> str:
    """cuda or cpu. QCompressError for a GPU that is not there."""
    if wanted == "cuda" and not gpu:
        raise QCompressError("--device cuda: torch sees no GPU here; leave the option out, or install a torch for CUDA")
    return "cuda" if gpu and wanted != "cpu" else "cpu"

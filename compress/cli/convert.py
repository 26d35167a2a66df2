"""qcompress convert: write the same quantized weights in another format."""

from pathlib import Path
from typing import Any

import click

from compress.cli.console import emit, imports, print_written, size_fact
from compress.cli.labels import percent
from compress.cli.model_path import MODEL
from compress.cli.options import Command, Parsed, json_option, out_option, shared_option
from compress.core.config import parse_size
from compress.core.report import Row


@click.command("convert", cls=Command)
@click.argument("checkpoint", metavar="CKPT", type=MODEL)
@shared_option(
    "--to",
    "target",
    group="Essentials",
    required=True,
    type=click.Choice(["awq", "gptq", "compressed-tensors", "gguf"]),
    help="Format to write. gguf is a single file for llama.cpp.",
)
@shared_option(
    "--embedding-type",
    group="Layout",
    type=click.Choice(["f16", "q8_0", "q6_k"]),
    help="Type of embedding and head in a .gguf file. q8_0 and q6_k are not exact.  [default: as in CKPT]",
)
@shared_option(
    "--max-size",
    group="Layout",
    type=Parsed(parse_size),
    metavar="SIZE",
    help="Largest size of a .gguf file, such as 100MB. Embedding and head become as small as it requires.",
)
@shared_option(
    "--allow-error",
    group="Layout",
    is_flag=True,
    help="Round weights that the format cannot store exactly, and report the measured error.",
)
@out_option("Folder for the converted checkpoint, or a file NAME.gguf.")
@json_option
def command(checkpoint: Path, target: str, out: Path, as_json: bool, **settings: Any) -> None:
    """Write the quantized checkpoint CKPT in another format, without quantizing again.

    Codes, scales and zeros stay the same, so the model has the same weights. A weight that the format cannot store
    exactly is an error, unless --allow-error is given. CKPT may come from another tool. A folder must pass `qcompress
    check`, and a .gguf file must read back bit by bit; otherwise nothing is written.

    \b
    qcompress convert qwen-awq --to compressed-tensors -o qwen-ct
    qcompress convert qwen-gptq --to awq -o qwen-awq
    qcompress convert qwen-gptq --to gguf -o qwen.gguf
    qcompress convert qwen-gptq --to gguf --embedding-type q8_0 -o qwen-small.gguf
    """
    with imports():
        from compress.ship.convert import convert

    row = convert(checkpoint, out, target, **settings)
    emit(row, as_json=as_json)
    if not as_json:
        for error in row["errors"]:
            click.echo(describe_error(error))
    limit = "" if row["errors"] else " --max-kl 0"
    follow = f"llama-server -m {out}" if target == "gguf" else f"qcompress verify {checkpoint} {out}{limit}"
    print_written(out, size_fact(row["bytes"]), next_command=follow, as_json=as_json)


def describe_error(error: Row) -> str:
    """One line about the tensors that are not exact."""
    size = f"largest error {error['largest_error']:.3g}, relative error {percent(error['relative_error'])} (RMS)"
    tensors = "1 tensor" if error["tensors"] == 1 else f"{error['tensors']} tensors"
    return f"not exact: {tensors} in {error['type']}, {size}"

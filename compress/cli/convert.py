"""qcompress convert: write the same quantized weights in another format."""

from pathlib import Path

import click

from compress.cli.console import emit, imports, print_written, size_fact
from compress.cli.model_path import MODEL
from compress.cli.options import Command, json_option, out_option, shared_option


@click.command("convert", cls=Command)
@click.argument("checkpoint", metavar="CKPT", type=MODEL)
@shared_option(
    "--to",
    "target",
    group="Essentials",
    required=True,
    type=click.Choice(["awq", "gptq", "compressed-tensors"]),
    help="Format to write.",
)
@out_option("Folder for the converted checkpoint.")
@json_option
def command(checkpoint: Path, target: str, out: Path, as_json: bool) -> None:
    """Write the quantized checkpoint CKPT in another format, without quantizing again.

    Codes, scales and zeros stay the same, so the model computes the same. A weight that the format cannot store exactly
    is an error. CKPT may come from another tool. The result must pass `qcompress check`, otherwise nothing is written.

    \b
    qcompress convert qwen-awq --to compressed-tensors -o qwen-ct
    qcompress convert qwen-gptq --to awq -o qwen-awq
    """
    with imports():
        from compress.ship.convert import convert

    row = convert(checkpoint, out, target)
    emit(row, as_json=as_json)
    print_written(
        out, size_fact(row["bytes"]), next_command=f"qcompress verify {checkpoint} {out} --max-kl 0", as_json=as_json
    )

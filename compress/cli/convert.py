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
    type=click.Choice(["awq", "gptq", "compressed-tensors", "gguf"]),
    help="Format to write. gguf is a single file for llama.cpp.",
)
@out_option("Folder for the converted checkpoint, or a file NAME.gguf.")
@json_option
def command(checkpoint: Path, target: str, out: Path, as_json: bool) -> None:
    """Write the quantized checkpoint CKPT in another format, without quantizing again.

    Codes, scales and zeros stay the same, so the model has the same weights. A weight that the format cannot store
    exactly is an error. CKPT may come from another tool. A folder must pass `qcompress check`, and a .gguf file must
    read back bit by bit; otherwise nothing is written.

    \b
    qcompress convert qwen-awq --to compressed-tensors -o qwen-ct
    qcompress convert qwen-gptq --to awq -o qwen-awq
    qcompress convert qwen-gptq --to gguf -o qwen.gguf
    """
    with imports():
        from compress.ship.convert import convert

    row = convert(checkpoint, out, target)
    emit(row, as_json=as_json)
    follow = f"llama-server -m {out}" if target == "gguf" else f"qcompress verify {checkpoint} {out} --max-kl 0"
    print_written(out, size_fact(row["bytes"]), next_command=follow, as_json=as_json)

"""qcompress import: a .gguf file as a plain checkpoint."""

from pathlib import Path

import click

from compress.cli.console import emit, json_option


@click.command("import")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory for the checkpoint.")
@click.option("--dtype", type=click.Choice(["float16", "bfloat16"]), default="float16", show_default=True)
@json_option
def command(model: Path, out: Path, dtype: str, as_json: bool) -> None:
    """Write MODEL.gguf as a plain Hugging Face checkpoint with tokenizer and chat template.

    \b
    qcompress import SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2
    """
    import torch

    from compress.checkpoint.gguf import import_gguf

    emit(import_gguf(model, out, dtype=getattr(torch, dtype)), as_json=as_json)

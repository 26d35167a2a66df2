"""qcompress import: convert a GGUF file to a Hugging Face checkpoint."""

from pathlib import Path

import click

from compress.cli.console import emit, print_written, size_fact
from compress.cli.options import Command, json_option, out_option, shared_option
from compress.core.errors import QCompressError


@click.command("import", cls=Command)
@click.argument("model", metavar="MODEL.gguf", type=click.Path(path_type=Path))
@out_option("Folder for the checkpoint.")
@shared_option(
    "--dtype",
    group="Essentials",
    type=click.Choice(["float16", "bfloat16"]),
    default="float16",
    show_default=True,
    help="Dtype of the written weights.",
)
@shared_option(
    "--tokenizer",
    group="Essentials",
    type=click.Path(path_type=Path),
    help="Folder with the original model's tokenizer. It must match MODEL's vocabulary, and is copied to the output.",
)
@json_option
def command(model: Path, out: Path, dtype: str, tokenizer: Path | None, as_json: bool) -> None:
    """Convert MODEL.gguf to a 16-bit Hugging Face checkpoint with tokenizer and chat template.

    A tensor or metadata key that cannot be converted is an error. MODEL may be any part of a split model, such as
    NAME-00001-of-00003.gguf; the other parts are read from the same folder.

    \b
    qcompress import SmolLM2-135M-Instruct.Q4_1.gguf -o smollm2
    qcompress import model-00001-of-00003.gguf --tokenizer original -o model
    """
    if not model.exists():
        raise QCompressError(f"{model}: no such file; give a .gguf file")
    import torch

    from compress.checkpoint.gguf.importer import import_gguf

    row = import_gguf(model, out, dtype=getattr(torch, dtype), tokenizer=tokenizer)
    emit(row, as_json=as_json)
    size = size_fact(sum(file.stat().st_size for file in out.glob("*.safetensors")))
    print_written(out, size, next_command=f"qcompress quantize {out} -o {out}-awq", as_json=as_json)

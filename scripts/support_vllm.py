"""Test tiny models of every family in vLLM on this CPU: python scripts/support_vllm.py [FAMILY...] -o FILE

Each tiny random model is rounded to 4 bits in one format. vLLM's log-probabilities are compared with those of
transformers on the unpacked weights, as in vllm_test.py. docs/results/data/support-vllm.json feeds
docs/reference/supported.md. Where vLLM fails, the row has its first error.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click
from tiny_models import CONTEXT, TINY, WRAPPED, save_tiny
from vllm_test import evaluate

from compress.checkpoint.read import Checkpoint
from compress.checkpoint.vllm_models import NO_FLOAT16, VLLM_VERSION
from compress.core.config import FORMAT_NAMES, QuantizeConfig
from compress.core.errors import QCompressError
from compress.quantize.job import quantize_checkpoint

NO_IMAGES = {"limit_mm_per_prompt": {"image": 0, "video": 0}}


def vllm_row(model_type: str, layout: str, work: Path) -> dict[str, Any] | None:
    """The result for one family in one format. None if qcompress refuses the family."""
    save_tiny(model_type, work / "model")
    kind = str(Checkpoint(work / "model").config["model_type"])
    dtype = "bfloat16" if kind in NO_FLOAT16 else "float16"
    try:
        quantize_checkpoint(work / "model", work / "out", QuantizeConfig(method="rtn", format=layout, dtype=dtype))
    except QCompressError:
        return None
    options = {"max_model_len": CONTEXT, **(NO_IMAGES if model_type in WRAPPED else {})}
    row = evaluate(str(work / "out"), dtype, None, **options)
    kept = ("agrees", "max_difference", "mean_difference", "max_behind", "tokens", "reason", "tolerance")
    return {"model_type": model_type, "format": layout, "dtype": dtype} | {k: row[k] for k in kept if k in row}


@click.command(help=__doc__)
@click.argument("families", nargs=-1)
@click.option("--format", "layout", type=click.Choice(FORMAT_NAMES), default="compressed-tensors", show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="JSON file with all rows; rows in it are kept.")
def main(families: tuple[str, ...], layout: str, out: Path | None) -> None:
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"] if out and out.is_file() else []
    for model_type in families or (*TINY, *WRAPPED):
        folder = Path(tempfile.mkdtemp())
        try:
            row = vllm_row(model_type, layout, folder)
        finally:
            shutil.rmtree(folder)
        if row is None:
            continue
        click.echo(json.dumps(row), err=True)
        rows = [one for one in rows if (one["model_type"], one["format"]) != (model_type, layout)] + [row]
        if out is not None:
            out.write_text(json.dumps({"vllm": VLLM_VERSION, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

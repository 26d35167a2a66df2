"""Test every family on a tiny random model: python scripts/support_table.py [FAMILY...] -o FILE

Each tiny model is quantized in three ways, checked, unpacked by qcompress and loaded by transformers. The result has
one row per family. docs/results/data/support.json feeds docs/reference/supported.md. A cell is a measured number or the
line with which a command refused.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from tiny_models import TEXT, TINY, VOCAB, WRAPPED, save_tiny
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from compress.checkpoint.check.run import check_checkpoint, error_rows
from compress.checkpoint.load import load_model
from compress.checkpoint.read import Checkpoint
from compress.core.config import QuantizeConfig
from compress.core.errors import QCompressError
from compress.quantize.job import quantize_checkpoint

WAYS = (("gptq", "compressed-tensors"), ("gptq", "gptq"), ("awq+gptq", "awq"))
COMMAND = "scripts/support_table.py -o docs/results/data/support.json"
PARTS = ("quantize", "transformers")
WINDOWS: dict[str, Any] = {"samples": 48, "seq_len": 64}
Row = dict[str, Any]


def refusal(error: Exception) -> str:
    """The error in one line, without the folder that it names."""
    return " ".join(str(error).split("config.json: ")[-1].split())[:300]


def attempt(work: Callable[[], Row]) -> Row:
    """The row of `work`, or the line with which it was refused; a traceback is named as such."""
    try:
        return work()
    except QCompressError as error:
        return {"refused": refusal(error)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {refusal(error)}"}


def sample_ids() -> Tensor:
    return torch.randint(4, VOCAB, (2, 48), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    """The logits (2, 48, vocabulary) in float32. Ids of images are avoided."""
    ids = sample_ids().clamp(min=8)
    logits: Tensor = model.eval()(ids, use_cache=False).logits.float()
    return logits


def load_transformers(model_type: str, folder: Path) -> Any:
    loader: Any = AutoModelForImageTextToText if model_type in WRAPPED else AutoModelForCausalLM
    return loader.from_pretrained(folder, dtype=torch.float32)


def cosine(one: Tensor, other: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one.flatten(0, 1), other.flatten(0, 1), dim=-1).mean().item()


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the root mean square of `other`."""
    return ((one - other).abs().max() / other.square().mean().sqrt()).item()


def quantized_row(folder: Path, out: Path, method: str, layout: str, text: Path, reference: Tensor) -> Row:
    """Quantize a tiny model, check it, and compare its logits with the original's."""
    config = QuantizeConfig(method=method, format=layout, text=(str(text),), **WINDOWS)
    summary = quantize_checkpoint(folder, out, config)
    errors = error_rows(check_checkpoint(out))
    logits = logits_of(load_model(out))
    row = {"cosine": round(cosine(logits, reference), 4), "errors": len(errors), "folded": summary["scaled"]}
    if errors:
        row["first_error"] = " ".join(str(errors[0].get(key, "")) for key in ("rule", "tensor", "key", "value"))[:200]
    same = carried_bytes(Checkpoint(folder), Checkpoint(out))
    return row | ({} if same is None else {"carried_identical": same})


def carried_bytes(source: Checkpoint, out: Checkpoint) -> bool | None:
    """Whether all tensors outside the language model have the same bytes. None without such tensors."""
    if not source.carried:
        return None
    return source.carried.keys() == out.carried.keys() and all(
        source.tensor(name).equal(out.tensor(name)) for name in source.carried
    )


def transformers_row(model_type: str, out: Path) -> Row:
    """Load a rounded compressed-tensors checkpoint with transformers, and compare it with our own unpacking."""
    quantize_checkpoint(out.parent / "model", out, QuantizeConfig(method="rtn", format="compressed-tensors"))
    model = load_transformers(model_type, out)
    torch.nn.Module.float(model)  # some parameters keep their dtype; model.float() is refused for quantized models
    return {"difference": round(difference(logits_of(model), logits_of(load_model(out))), 6)}


def family_row(model_type: str, work: Path, parts: Sequence[str]) -> Row:
    """The results of one family."""
    source = save_tiny(model_type, work / "model")
    row: Row = {"model_type": model_type, "architecture": type(source).__name__}
    if "quantize" in parts:
        row |= quantize_rows(model_type, work)
    if "transformers" in parts:
        row["transformers"] = attempt(lambda: transformers_row(model_type, work / "rounded"))
    return row


def quantize_rows(model_type: str, work: Path) -> Row:
    """The model without quantization, and in every way of WAYS."""
    row: Row = {}
    reference = logits_of(load_transformers(model_type, work / "model"))
    text = work / "text.txt"
    text.write_text(" ".join(TEXT * 200))
    ours = attempt(lambda: {"difference": round(difference(logits_of(load_model(work / "model")), reference), 6)})
    row["unquantized"] = ours
    for method, layout in WAYS:
        out = work / f"{method}-{layout}"
        made = attempt(lambda m=method, f=layout, o=out: quantized_row(work / "model", o, m, f, text, reference))  # type: ignore[misc]
        row[f"{method} {layout}"] = made
        if made.get("refused") and row.get("refused", made["refused"]) == made["refused"]:
            row["refused"] = made["refused"]
    return row


@click.command(help=__doc__)
@click.argument("families", nargs=-1)
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS, help="Run only this part.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="JSON file with all rows; other rows are kept.")
def main(families: tuple[str, ...], parts: tuple[str, ...], out: Path | None) -> None:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows: dict[str, Row] = {}
    if out is not None and out.is_file():
        rows = {row["model_type"]: row for row in json.loads(out.read_text())["rows"]}
    for model_type in families or (*TINY, *WRAPPED):
        folder, started = Path(tempfile.mkdtemp()), time.perf_counter()
        try:
            row = family_row(model_type, folder, parts)
        finally:
            shutil.rmtree(folder)
        click.echo(f"{time.perf_counter() - started:5.1f} s  {json.dumps(row)}", err=True)
        rows[model_type] = rows.get(model_type, {}) | row
        if out is not None:
            content = {"date": f"{date.today()}", "command": COMMAND, "rows": list(rows.values())}
            out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

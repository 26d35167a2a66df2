"""The verdicts of docs/reference/boards.md: which model fits on which board, by the gate of `qcompress ship`.

The models are configs of recipes/configs. Each becomes a checkpoint of headers: its weight files have the right names,
shapes and sizes, but no data on the disk. `scripts/make_docs.py` writes the page.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.checkpoint.formats import FORMATS, packed_config
from compress.checkpoint.read import Checkpoint, read_json
from compress.checkpoint.write import plan_shards
from compress.core.config import QuantizeConfig
from compress.core.errors import GateFailure
from compress.core.units import format_bytes
from compress.quantize.layout.plan import make_plan, read_source
from compress.ship.boards import BOARDS, Board
from compress.ship.gate import Fit, Request, check_fit

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
MODELS = {  # of recipes/configs: heading
    "seed-student": "student of a 7B model",
    "qwen2.5-7b-instruct": "Qwen2.5-7B",
    "qwen2.5-1.5b-instruct": "Qwen2.5-1.5B",
    "qwen2.5-0.5b-instruct": "Qwen2.5-0.5B",
}
REQUEST = Request(context=4096, requests=4)


@contextmanager
def header_checkpoint(config: Path, layout: str, **settings: Any) -> Iterator[Checkpoint]:
    """A checkpoint in `layout` for the model of a config.json, whose files have sizes but no data on the disk."""
    source = read_source(config)
    plan = make_plan(source, QuantizeConfig(method="rtn", format=layout, **settings))
    packed = packed_config(read_json(config), FORMATS[layout], plan.schemes, plan.unquantized)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / config.stem
        folder.mkdir()
        shards = plan_shards(plan.specs)
        for shard in shards:
            with (folder / shard.file).open("wb") as file:
                file.write(shard.header)
                file.truncate(shard.bytes)
        if len(shards) > 1:
            weight_map = {name: shard.file for shard in shards for name in shard.offsets}
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (folder / "config.json").write_text(json.dumps(packed))
        yield Checkpoint(folder)


def verdict(checkpoint: Checkpoint, board: Board, request: Request = REQUEST) -> Fit | str:
    """The fit on a board, or the reason for a refusal."""
    try:
        return check_fit(checkpoint, board, request)
    except GateFailure as refusal:
        return refusal.message.removeprefix(f"{checkpoint}: ")


def cell(result: Fit | str) -> str:
    if isinstance(result, str):
        return "no"
    speed = "" if result.tokens_per_s is None else f", {result.tokens_per_s:,.0f}/s"
    return f"{format_bytes(result.needed)}{speed}"


def usable(board: Board) -> str:
    """The memory that vLLM may use on all GPUs of a board."""
    return format_bytes(board.hardware.usable)


def verdicts(layout: str) -> dict[str, dict[str, Fit | str]]:
    """{model: {board: its fit or the reason}} for all models and boards."""
    results: dict[str, dict[str, Fit | str]] = {}
    for name in MODELS:
        with header_checkpoint(CONFIGS / f"{name}.json", layout) as checkpoint:
            results[name] = {board.name: verdict(checkpoint, board) for board in BOARDS.values()}
    return results

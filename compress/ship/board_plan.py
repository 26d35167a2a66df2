"""The limit of `qcompress plan --hardware`: the bytes of weights and the layouts that a board takes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compress.checkpoint.check.parallel_rules import split_fault
from compress.checkpoint.check.table import make_table
from compress.core.config import QuantizeConfig
from compress.core.errors import QCompressError
from compress.core.units import format_bytes
from compress.evaluate.speed.capacity import check_context, read_footprint
from compress.quantize.layout.plan import LayoutPlan
from compress.ship.boards import find_board
from compress.ship.features import reads_layout
from compress.ship.fit import Request, weight_room


@dataclass(frozen=True)
class BoardLimit:
    """The largest weights in bytes, and whether the board takes a layout whatever its size."""

    size: int
    accept: Callable[[QuantizeConfig, LayoutPlan], bool]


def board_limit(model: Path, name: str, context: int, requests: int, kv_dtype: str) -> BoardLimit:
    """The limit of a board for the model at a path. Raises QCompressError if the KV cache alone is too large."""
    board, footprint = find_board(name), read_footprint(model)
    check_context(model, footprint.config, context, cure="lower --context")
    room = weight_room(footprint, board.hardware, Request(context, requests, kv_dtype))
    if room <= 0:
        raise QCompressError(
            f"{model}: the KV cache and the allowance for --context {context} --requests {requests} leave no room for "
            f"weights on {board.title}: {format_bytes(-room)} too much; lower them, or change --kv-cache-dtype"
        )
    table = make_table(footprint.config)

    def accept(layout: QuantizeConfig, plan: LayoutPlan) -> bool:
        config = footprint.config | {"quantization_config": {"quant_method": layout.format}}
        divides = board.gpus == 1 or split_fault(config, table, plan.schemes, board.gpus) is None
        return divides and reads_layout(layout, board.vllm)

    return BoardLimit(room, accept)

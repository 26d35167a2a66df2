"""Measure the importance of channels and heads from activations on calibration text.

    hidden channel   importance of its values after the norms before attention and MLP, summed over all norms
    MLP channel      importance of its values in the input of down_proj
    query head       importance of the head's L2 norm in the input of o_proj
    KV head          root of the sum of squares over the query heads that use it

The importance of a value is computed in two steps: the mean of its size |·| over the tokens of a window, then the L2
norm of these means over the windows. This was the best combination in Minitron (https://arxiv.org/abs/2407.14679).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calibration.capture import watch_inputs
from compress.core.errors import BadValueError
from compress.model.blocks import Block, BlockModel, Weights
from compress.model.width import BlockImportance

INPUT_UNITS = {  # by linear: the unit along its input; one linear for each norm
    "q_proj": "hidden",
    "qkv_proj": "hidden",
    "gate_proj": "hidden",
    "gate_up_proj": "hidden",
    "o_proj": "query",
    "down_proj": "mlp",
}


@dataclass(frozen=True)
class ActivationImportance:
    """Measured importance: of the hidden channels (hidden,), and of each block's MLP channels and heads. float32."""

    channels: Tensor
    blocks: Sequence[BlockImportance]

    def hidden(self) -> Tensor:
        return self.channels

    def block(self, index: int) -> BlockImportance:
        return self.blocks[index]


@torch.no_grad()
def measure_importance(
    config: dict[str, Any], weights: Weights, ids: Tensor, device: torch.device | str = "cpu"
) -> ActivationImportance:
    """Measure the importance of every channel and head on ids (n_samples, seq_len).

    One block is in memory at a time, and windows run one by one. Raises ValueError if a block has no linear that reads
    the hidden channels, the MLP channels or the heads.
    """
    model = BlockModel(config, weights, device=device)
    settings = model.model.config
    with model.embedding_and_norm():
        windows = [model.embed(window[None]) for window in ids]
    channels, blocks = torch.zeros(int(settings.hidden_size)), []
    for index, block in model.in_order():
        units = measure_block(block, model.runner(block, index), windows, int(settings.num_attention_heads))
        channels += units["hidden"]
        query = units["query"]
        kv = query.view(int(settings.num_key_value_heads), -1).square().sum(1).sqrt()
        blocks.append(BlockImportance(mlp=units["mlp"], query=query, kv=kv))
    return ActivationImportance(channels, blocks)


def measure_block(
    block: Block, run: Callable[[Tensor], Tensor], windows: list[Tensor], heads: int
) -> dict[str, Tensor]:
    """The importance of a block's channels and heads, by unit, on the CPU.

    In `windows`, every window is replaced by the block's output for it.
    """
    linears = {path: linear for path, linear in block.linears.items() if path.rpartition(".")[2] in INPUT_UNITS}
    squares: dict[str, Tensor] = {}

    def update(path: str, x: Tensor) -> None:
        unit = INPUT_UNITS[path.rpartition(".")[2]]
        values = x.float().unflatten(-1, (heads, -1)).norm(dim=-1) if unit == "query" else x.float().abs()
        square = values.flatten(0, -2).mean(0).square().cpu()
        squares[path] = squares[path] + square if path in squares else square

    with watch_inputs(linears, update):
        for number, window in enumerate(windows):
            windows[number] = run(window)
    importance: dict[str, Tensor] = {}
    for path, square in squares.items():
        unit = INPUT_UNITS[path.rpartition(".")[2]]
        importance[unit] = importance[unit] + square.sqrt() if unit in importance else square.sqrt()
    missing = set(INPUT_UNITS.values()) - importance.keys()
    if missing:
        units = ", ".join(sorted(missing))
        raise BadValueError(
            f"{block.name}: none of its {len(block.linears)} linears is known to read {units} channels; "
            "remove blocks instead of channels (num_layers)"
        )
    return importance

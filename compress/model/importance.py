"""What each channel and head of a model is worth, by what flows through it on calibration text.

    hidden channel   Σ over the norms that feed attention and MLP of its importance in what they put out
    MLP channel      its importance in what enters down_proj, the product of the SwiGLU
    query head       the L2 norm, token by token, of its part of what enters o_proj
    KV head          the root of the sum of squares of the query heads that use it

The importance of a value over a text is its mean |·| over the tokens of a window, then the L2 norm over the windows:
the best of the pairs in Minitron (https://arxiv.org/abs/2407.14679).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calibration.capture import watch_inputs
from compress.model.blocks import Block, BlockModel, Weights
from compress.model.width import BlockImportance

SEEN = {  # by the name of a linear: the unit that lies along its input; one linear per norm
    "q_proj": "hidden",
    "qkv_proj": "hidden",
    "gate_proj": "hidden",
    "gate_up_proj": "hidden",
    "o_proj": "query",
    "down_proj": "mlp",
}


@dataclass(frozen=True)
class ActivationImportance:
    """What was measured: hidden channels (hidden,), and every block's own channels and heads, float32."""

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
    """The importance of every channel and head on (windows, seq_len) ids; deterministic.

    One block is in memory at a time, and one window at a time goes through it. ValueError for a block of which a
    linear's input is unknown to SEEN.
    """
    model = BlockModel(config, weights, device=device)
    settings = model.model.config
    with model.embedding_and_norm():
        windows = [model.embed(window[None]) for window in ids]
    channels, blocks = torch.zeros(int(settings.hidden_size)), []
    for index, block in model.in_order():
        seen = watch(block, model.runner(block, index), windows, int(settings.num_attention_heads))
        channels += seen["hidden"]
        query = seen["query"]
        kv = query.view(int(settings.num_key_value_heads), -1).square().sum(1).sqrt()
        blocks.append(BlockImportance(mlp=seen["mlp"], query=query, kv=kv))
    return ActivationImportance(channels, blocks)


def watch(block: Block, run: Callable[[Tensor], Tensor], windows: list[Tensor], heads: int) -> dict[str, Tensor]:
    """Importance of the block's units by their name, on the CPU; every window is replaced by the block's output."""
    linears = {path: linear for path, linear in block.linears.items() if path.rpartition(".")[2] in SEEN}
    squares: dict[str, Tensor] = {}

    def update(path: str, x: Tensor) -> None:
        unit = SEEN[path.rpartition(".")[2]]
        values = x.float().unflatten(-1, (heads, -1)).norm(dim=-1) if unit == "query" else x.float().abs()
        square = values.flatten(0, -2).mean(0).square().cpu()
        squares[path] = squares[path] + square if path in squares else square

    with watch_inputs(linears, update):
        for number, window in enumerate(windows):
            windows[number] = run(window)
    found: dict[str, Tensor] = {}
    for path, square in squares.items():
        unit = SEEN[path.rpartition(".")[2]]
        found[unit] = found[unit] + square.sqrt() if unit in found else square.sqrt()
    missing = set(SEEN.values()) - found.keys()
    if missing:
        what = ", ".join(sorted(missing))
        raise ValueError(f"{block.name}: none of its {len(block.linears)} linears shows the importance of {what}")
    return found

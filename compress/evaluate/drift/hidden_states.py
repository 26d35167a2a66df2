"""Run a checkpoint over windows, one block in memory at a time, and keep the final hidden states.

States larger than MEMORY_STATES go to a memory-mapped temporary file, so they need not fit in memory.

States are float32. They are much smaller than logits: for one token, a 7B model has 3,584 states but 152,064 logits.
Smaller dtypes change the results: float16 moved SmolLM2-135M's perplexity by 4e-4 and overflows on massive activations,
and bfloat16 moved the model's KL by 1e-4.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from compress.checkpoint.formats import weight_reader
from compress.checkpoint.read import Checkpoint
from compress.core.errors import QCompressError
from compress.model.blocks import BlockModel

Row = dict[str, Any]
Report = Callable[[Row], None]
MICRO_BATCH_TOKENS = 2048  # enough for efficient matrix products, few enough for the processor's cache
MEMORY_STATES = 2**30  # bytes of hidden states that stay in memory, per checkpoint


@dataclass(frozen=True)
class HiddenStates:
    """A checkpoint and its hidden states after the last block, (n_samples, seq_len, hidden_size) float32.

    The states are in CPU memory or in a file. Blocks and logits are on the model's device.
    """

    checkpoint: Checkpoint
    model: BlockModel
    hidden: Tensor

    @contextmanager
    def head(self) -> Iterator[None]:
        """A context that keeps the final norm and the head in memory. Call `logits` inside it."""
        with self.model.embedding_and_norm(head=True):
            yield

    def logits(self, places: Tensor) -> Tensor:
        """The logits of the next token, (count, vocab) float32, at `places` (count, 2): pairs of window and position.

        The model's own code computes final norm, head, scaling and softcaps.
        """
        states = self.hidden[places[:, 0], places[:, 1]].to(self.model.device)
        return self.model.logits(states[None])[0].float()


@torch.no_grad()
def read_windows(
    checkpoint: Checkpoint,
    ids: Tensor,
    *,
    device: str = "cpu",
    micro_batch: int | None = None,
    report: Report = lambda row: None,
) -> HiddenStates:
    """Run the checkpoint over token ids (n_samples, seq_len).

    Each block runs on all windows before the next block is loaded, so one block is in memory at a time. A forward pass
    runs `micro_batch` windows; this number changes the speed, never the result.
    """
    model = BlockModel(checkpoint.config, weight_reader(checkpoint), device=device)
    size = micro_batch or max(1, MICRO_BATCH_TOKENS // ids.shape[1])
    hidden = make_states((*ids.shape, int(model.model.config.hidden_size)))
    started, name = time.perf_counter(), checkpoint.path.name
    report({"reads": name, "block": f"0/{len(model)}"})

    def done(index: int) -> None:
        seconds = round(time.perf_counter() - started, 1)
        report({"reads": name, "block": f"{index + 1}/{len(model)}", "seconds": seconds})

    model.read(ids, hidden, size, done)
    return HiddenStates(checkpoint, model, hidden)


def make_states(shape: tuple[int, ...]) -> Tensor:
    """An uninitialized float32 tensor in memory.

    A tensor of more than MEMORY_STATES bytes is memory-mapped from a temporary file instead.
    """
    count = prod(shape)
    if 4 * count <= MEMORY_STATES:
        return torch.empty(shape)
    with tempfile.NamedTemporaryFile(prefix="qcompress-states-") as file:
        return torch.from_file(file.name, shared=True, size=count).view(shape)


def scored_places(mask: Tensor) -> Tensor:
    """The window and position of each scored prediction, (count, 2).

    A position is scored if `mask` includes the next token.
    """
    return mask[:, 1:].nonzero()


def check_finite(checkpoint: Checkpoint, values: Tensor, places: Tensor, what: str) -> None:
    """Raises QCompressError if one of `values` (count,) is not finite. The error names checkpoint and window."""
    wrong = (~values.isfinite()).nonzero()
    if len(wrong):
        value, (window, position) = values[wrong[0]].item(), places[wrong[0, 0]].tolist()
        raise QCompressError(
            f"{checkpoint}: {what} is {value} in window {window + 1}, position {position + 1}; "
            "the weights are damaged or overflow; quantize or distill again"
        )

"""Run a checkpoint over windows, one block in memory at a time, and keep the final hidden states.

States larger than MEMORY_STATES are in a memory-mapped temporary file, so they need not fit in memory.

States are float32: small next to logits (a 7B model has 3,584 numbers per token against 152,064). Float16 moved
SmolLM2-135M's perplexity by 4e-4 and overflows on massive activations; bfloat16 moved its KL by 1e-4.
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
MICRO_BATCH_TOKENS = 2048  # enough for efficient matrix products, and fits the cache
MEMORY_STATES = 2**30  # bytes of hidden states that stay in memory, per checkpoint
SECONDS_BETWEEN_REPORTS = 10.0


@dataclass(frozen=True)
class HiddenStates:
    """A checkpoint and its `hidden` states (n_samples, seq_len, hidden_size) after the last block, float32.

    The states are in CPU memory or in a file; the model's blocks and its logits are on the model's device.
    """

    checkpoint: Checkpoint
    model: BlockModel
    hidden: Tensor

    @contextmanager
    def head(self) -> Iterator[None]:
        """Context in which final norm and head are in memory. `logits` needs it."""
        with self.model.embedding_and_norm(head=True):
            yield

    def logits(self, places: Tensor) -> Tensor:
        """(count, vocab) float32 logits of the next token at `places` (count, 2), pairs of window and position.

        Final norm, head, scaling and softcaps run in the model's code.
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
    """Run the checkpoint over (n_samples, seq_len) ids.

    Each block runs on all windows before the next one is loaded, so memory holds one block. `micro_batch` windows run
    at a time: it changes the speed, never the result.
    """
    model = BlockModel(checkpoint.config, weight_reader(checkpoint), device=device)
    size = micro_batch or max(1, MICRO_BATCH_TOKENS // ids.shape[1])
    hidden = make_states((*ids.shape, int(model.model.config.hidden_size)))
    with model.embedding_and_norm():
        for part, place in zip(ids.split(size), hidden.split(size), strict=True):
            place.copy_(model.embed(part))
    started = reported = time.perf_counter()
    for index, module in model.in_order():
        run = model.runner(module, index)
        for part in hidden.split(size):
            part.copy_(run(part))  # a view: the states are overwritten in place
        now = time.perf_counter()
        if index + 1 == len(model) or now - reported > SECONDS_BETWEEN_REPORTS:
            report(
                {
                    "reads": checkpoint.path.name,
                    "block": f"{index + 1}/{len(model)}",
                    "seconds": round(now - started, 1),
                }
            )
            reported = now
    return HiddenStates(checkpoint, model, hidden)


def make_states(shape: tuple[int, ...]) -> Tensor:
    """Uninitialized float32 states of `shape`; in an unnamed file if larger than MEMORY_STATES."""
    count = prod(shape)
    if 4 * count <= MEMORY_STATES:
        return torch.empty(shape)
    with tempfile.NamedTemporaryFile(prefix="qcompress-states-") as file:
        return torch.from_file(file.name, shared=True, size=count).view(shape)


def scored_places(mask: Tensor) -> Tensor:
    """(count, 2) window and position of every scored logit. A logit is scored if its next token is in `mask`."""
    return mask[:, 1:].nonzero()


def check_finite(checkpoint: Checkpoint, values: Tensor, places: Tensor, what: str) -> None:
    """Raise QCompressError with the checkpoint and the first window unless all `values` (count,) are finite."""
    wrong = (~values.isfinite()).nonzero()
    if len(wrong):
        value, (window, position) = values[wrong[0]].item(), places[wrong[0, 0]].tolist()
        raise QCompressError(
            f"{checkpoint}: {what} is {value} in window {window + 1}, position {position + 1}; "
            "the weights are damaged or overflow; quantize or distill again"
        )

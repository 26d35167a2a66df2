"""A checkpoint reads the windows: one block in memory at a time, the final hidden states kept.

Where the states of all windows are more than MEMORY_STATES they lie in a temporary file that is mapped: the system
writes to disk what does not fit in memory.

Hidden states are kept in float32. They are small beside logits (a 7B model: 3,584 numbers a token against 152,064).
Kept in float16 they moved SmolLM2-135M's perplexity by 4e-4 (and massive activations overflow), in bfloat16 its KL by
1e-4.
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
MICRO_BATCH_TOKENS = 2048  # large enough for the matrix products, small enough for the cache
MEMORY_STATES = 2**30  # bytes of hidden states, of one checkpoint
SECONDS_BETWEEN_REPORTS = 10.0


@dataclass(frozen=True)
class HiddenStates:
    """A checkpoint that has read the windows: `hidden` (n_samples, seq_len, hidden_size) after its last block."""

    checkpoint: Checkpoint
    model: BlockModel
    hidden: Tensor

    @contextmanager
    def head(self) -> Iterator[None]:
        """While open, final norm and head are in memory, and `logits` works."""
        with self.model.embedding_and_norm(head=True):
            yield

    def logits(self, places: Tensor) -> Tensor:
        """(count, vocab) float32 at `places` (count, 2), pairs of window and position: what is said of the next token.

        Final norm, head, scaling and softcaps are the model's own code.
        """
        states = self.hidden[places[:, 0], places[:, 1]]
        return self.model.logits(states[None])[0].float()


@torch.no_grad()
def read_windows(
    checkpoint: Checkpoint, ids: Tensor, *, micro_batch: int | None = None, report: Report = lambda row: None
) -> HiddenStates:
    """Run the checkpoint over (n_samples, seq_len) ids.

    Every block sees all windows, `micro_batch` at a time (it changes the speed, never the result), before the next
    is loaded, so memory holds one block, and the hidden states as long as they are less than MEMORY_STATES.
    """
    model = BlockModel(checkpoint.config, weight_reader(checkpoint))
    size = micro_batch or max(1, MICRO_BATCH_TOKENS // ids.shape[1])
    hidden = make_states((*ids.shape, int(model.model.config.hidden_size)))
    with model.embedding_and_norm():
        for part, place in zip(ids.split(size), hidden.split(size), strict=True):
            place.copy_(model.embed(part))
    started = told = time.perf_counter()
    for index, module in model.in_order():
        run = model.runner(module, index)
        for part in hidden.split(size):
            part.copy_(run(part))  # a view: the states are overwritten in place
        now = time.perf_counter()
        if index + 1 == len(model) or now - told > SECONDS_BETWEEN_REPORTS:
            report(
                {
                    "reads": checkpoint.path.name,
                    "block": f"{index + 1}/{len(model)}",
                    "seconds": round(now - started, 1),
                }
            )
            told = now
    return HiddenStates(checkpoint, model, hidden)


def make_states(shape: tuple[int, ...]) -> Tensor:
    """Room for float32 states of `shape`, on disk where they are many, in a file without a name."""
    count = prod(shape)
    if 4 * count <= MEMORY_STATES:
        return torch.empty(shape)
    with tempfile.NamedTemporaryFile(prefix="qcompress-states-") as file:
        return torch.from_file(file.name, shared=True, size=count).view(shape)


def scored_places(mask: Tensor) -> Tensor:
    """(count, 2) window and position of every logit that is scored: those whose next token counts in `mask`."""
    return mask[:, 1:].nonzero()


def refuse_not_finite(checkpoint: Checkpoint, values: Tensor, places: Tensor, what: str) -> None:
    """QCompressError with the checkpoint and the first window, unless all of `values` (count,) are finite."""
    wrong = (~values.isfinite()).nonzero()
    if len(wrong):
        value, (window, position) = values[wrong[0]].item(), places[wrong[0, 0]].tolist()
        raise QCompressError(
            f"{checkpoint}: {what} is {value} in window {window + 1}, position {position + 1}; "
            "its weights are broken or overflow: quantize or distill it again"
        )

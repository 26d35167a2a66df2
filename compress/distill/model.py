"""The model that training and capture run: it returns hidden states and the head, never the full logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from compress.checkpoint.formats import model_dtype
from compress.checkpoint.load import load_model
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint
from compress.core.distributed import place
from compress.core.errors import QCompressError
from compress.distill.text.packing import attention
from compress.losses import Head, LogitSource, cross_entropy, find_head
from compress.losses.buffers import MICRO_TOKENS
from compress.model.positions import counting_positions
from compress.model.precision import gpu_dtype

T = TypeVar("T")
CURES = "use --gradient-checkpointing, --cache, --lora-rank, a smaller --seq-len or more GPUs with FSDP"
ROUNDINGS = 4  # of a logit and of the states before it; two nlls of one model differ by less


class Model:
    """A causal LM that returns its final hidden states, and the output head that turns them into logits."""

    on_host = False  # `side` reads ids on the model's device

    def __init__(self, model: Any, device: torch.device):
        self.model = model.to(device)
        self.head: Head = find_head(model.config.to_dict())

    def side(self, ids: Tensor, documents: Tensor | None = None) -> LogitSource:
        """Run (batch, seq) ids; returns the hidden states of all positions except the last, and the head.

        Tokens attend only within their document; `documents`, (batch, seq), holds each token's document number.
        """
        apart = attention(documents, self.model)
        with counting_positions(ids.device):
            hidden = self.model.base_model(ids, use_cache=False, **apart).last_hidden_state[:, :-1]
        return LogitSource(hidden, self.model.get_output_embeddings().weight, self.head)

    def states(
        self, ids: Tensor, blocks: Sequence[int], documents: Tensor | None = None
    ) -> tuple[LogitSource, list[Tensor]]:
        """The result of `side`, and the outputs of `blocks`, (batch, seq - 1, width) each.

        Blocks are numbered from 1. The output of the last block is taken after the final norm.
        """
        apart = attention(documents, self.model)
        with counting_positions(ids.device):
            outputs = self.model.base_model(ids, use_cache=False, output_hidden_states=True, **apart)
        side = LogitSource(outputs.last_hidden_state[:, :-1], self.model.get_output_embeddings().weight, self.head)
        return side, [outputs.hidden_states[block][:, :-1] for block in blocks]


def open_model(source: PathOrCheckpoint, dtype: torch.dtype, device: torch.device) -> Model:
    """The model of a checkpoint. Raises QCompressError if the loss does not support its output head."""
    model = Model(load_model(source, dtype), device)
    check_head(model, str(source))
    return model


def working_dtype(teacher: Checkpoint, device: torch.device) -> torch.dtype:
    """The dtype in which a teacher runs: float32 on a CPU, and on a GPU its `gpu_dtype`."""
    if device.type == "cpu":
        return torch.float32
    return gpu_dtype(model_dtype(teacher.config).torch, str(teacher.config.get("model_type")))


def micro_batch(seq_len: int, device: torch.device) -> int:
    """The number of windows that one forward pass reads."""
    return max(1, MICRO_TOKENS.get(device.type, MICRO_TOKENS["cpu"]) // seq_len)


@dataclass
class MicroBatch:
    """The number of windows of one forward and backward pass, and their length. It shrinks where memory is short."""

    size: int
    seq_len: int

    def fit(self, work: Callable[[int], T]) -> T:
        """The result of `work(size)`. If a GPU's memory is full, `size` is halved, and `work` is called again.

        The size changes the speed, never the result. Raises QCompressError if one window does not fit, or if there are
        several processes, because the others would wait for this one.
        """
        while True:
            try:
                return work(self.size)
            except torch.OutOfMemoryError as error:
                if self.size == 1 or place()[1] > 1:
                    windows = f"{self.size} x {self.seq_len} tokens"
                    raise QCompressError(f"{windows} do not fit into the GPU's memory; {CURES}") from error
            self.size = -(-self.size // 2)
            torch.cuda.empty_cache()


def check_head(model: Model, name: str) -> None:
    """Raises QCompressError if the model's own logits differ from the logits that `Head` computes."""
    ids = torch.arange(8, device=model.model.device)[None]
    with torch.no_grad():
        side, expected = model.side(ids), model.model(ids, use_cache=False).logits[:, :-1].float()
        nll = cross_entropy(side, ids[:, 1:], torch.ones_like(ids[:, 1:], dtype=torch.bool), vocab=expected.shape[-1])
    reference = nn.functional.cross_entropy(expected.flatten(0, 1), ids[0, 1:], reduction="none")
    rounding = ROUNDINGS * torch.finfo(model.model.dtype).eps * float(expected.abs().max())  # of the model's own logits
    if not torch.allclose(nll.flatten(), reference, rtol=1e-2, atol=1e-2 + rounding):
        kind = type(model.model).__name__
        raise QCompressError(
            f"{name}: the output head of {kind} is not supported (bias, scale or cap); use another model family"
        )

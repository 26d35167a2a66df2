"""The model that training and capture run: it returns hidden states and the head, never the full logits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.checkpoint.load import load_model
from compress.checkpoint.read import PathOrCheckpoint
from compress.core.errors import QCompressError
from compress.distill.text.packing import attention
from compress.losses import Head, LogitSource, cross_entropy, find_head
from compress.losses.buffers import MICRO_TOKENS


class Model:
    """A causal LM that returns its final hidden states, and the output head that turns them into logits."""

    def __init__(self, model: Any, device: torch.device):
        self.model = model.to(device)
        self.head: Head = find_head(model.config.to_dict())

    def side(self, ids: Tensor, documents: Tensor | None = None) -> LogitSource:
        """Run (batch, seq) ids; returns the hidden states of all positions except the last, and the head.

        Tokens attend only within their document; `documents`, (batch, seq), holds each token's document number.
        """
        apart = attention(documents, self.model)
        hidden = self.model.base_model(ids, use_cache=False, **apart).last_hidden_state[:, :-1]
        return LogitSource(hidden, self.model.get_output_embeddings().weight, self.head)

    def states(
        self, ids: Tensor, blocks: Sequence[int], documents: Tensor | None = None
    ) -> tuple[LogitSource, list[Tensor]]:
        """The result of `side`, and the outputs of `blocks`, (batch, seq - 1, width) each.

        Blocks are numbered from 1. The output of the last block is taken after the final norm.
        """
        apart = attention(documents, self.model)
        outputs = self.model.base_model(ids, use_cache=False, output_hidden_states=True, **apart)
        side = LogitSource(outputs.last_hidden_state[:, :-1], self.model.get_output_embeddings().weight, self.head)
        return side, [outputs.hidden_states[block][:, :-1] for block in blocks]


def open_model(source: PathOrCheckpoint, dtype: torch.dtype, device: torch.device) -> Model:
    """The model of a checkpoint. Raises QCompressError if the loss does not support its output head."""
    model = Model(load_model(source, dtype), device)
    check_head(model, str(source))
    return model


def working_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which a teacher runs: bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def micro_batch(seq_len: int, device: torch.device) -> int:
    """The number of windows that one forward pass reads."""
    return max(1, MICRO_TOKENS.get(device.type, MICRO_TOKENS["cpu"]) // seq_len)


def check_head(model: Model, name: str) -> None:
    """Raises QCompressError if the model's own logits differ from the logits that `Head` computes."""
    ids = torch.arange(8, device=model.model.device)[None]
    with torch.no_grad():
        side, expected = model.side(ids), model.model(ids, use_cache=False).logits[:, :-1].float()
        nll = cross_entropy(side, ids[:, 1:], torch.ones_like(ids[:, 1:], dtype=torch.bool), vocab=expected.shape[-1])
    reference = nn.functional.cross_entropy(expected.flatten(0, 1), ids[0, 1:], reduction="none")
    if not torch.allclose(nll.flatten(), reference, rtol=1e-2, atol=1e-2):
        kind = type(model.model).__name__
        raise QCompressError(
            f"{name}: the output head of {kind} is not supported (bias, scale or cap); use another model family"
        )

"""Attention masks and positions that separate the documents of one window.

A token attends to earlier tokens of its document, and to the window's start token if there is one. Positions count from
the beginning of the document; the start token has position 0. So the other documents of a window never change a
document's hidden states. If a window ends inside a document, the next window treats the rest as a new document. No
earlier token predicts the first token of a second or later document, so the loss leaves that token out.

`documents` (batch, seq) int64 holds the document number of every token, or START for a start token. A sliding window
counts positions within the document. Windows with one document need no mask.
"""

from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from calibration.windows import Windows
from compress.core.device import move
from compress.core.errors import QCompressError
from compress.losses import LogitSource

START = -1
KINDS = {"full_attention", "sliding_attention"}
PROBE, BEFORE = 8, 3  # tokens of the tested document, and tokens of the document before it
TOLERANCE = {torch.float32: 1e-3}  # largest relative difference of a hidden state; ROUGH for 16-bit dtypes
ROUGH = 0.1
CURE = "so qcompress cannot separate the documents of a window; use --packing full"


class Batch(NamedTuple):
    """Windows: token ids, loss mask and document numbers, (batch, seq) each.

    If `documents` is None, each token attends to all earlier tokens of its window.
    """

    ids: Tensor
    mask: Tensor
    documents: Tensor | None = None

    def rows(self, index: Any) -> "Batch":
        """The windows at these indices."""
        documents = None if self.documents is None else self.documents[index]
        return Batch(self.ids[index], self.mask[index], documents)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device. On the way to a GPU, document numbers are dropped if no window needs a mask."""
        documents = self.documents
        if documents is not None and device.type == "cuda" and not documents.is_cuda and single_document(documents):
            documents = None
        placed = None if documents is None else move(documents, device)
        return Batch(move(self.ids, device), move(self.mask, device), placed)

    def split(self, size: int) -> list["Batch"]:
        """Batches of `size` windows; the last one may be smaller."""
        return [self.rows(slice(first, first + size)) for first in range(0, len(self.ids), size)]


class LogitModel(Protocol):
    """A model with a method `side`, which returns hidden states and the output head."""

    model: Any

    def side(self, ids: Tensor, documents: Tensor | None = None) -> LogitSource: ...


def as_batch(windows: Windows) -> Batch:
    """All windows as one batch."""
    return Batch(windows.ids, windows.mask, windows.documents)


def pack(windows: Windows, packing: str) -> Windows:
    """The windows, prepared for `packing`.

    "full" drops `documents`. "documents" masks the first token of every document after the first.
    """
    manifest = windows.manifest | {"packing": packing}
    if packing == "full" or windows.documents is None:
        return replace(windows, manifest=manifest, documents=None)
    documents, mask = windows.documents.clone(), windows.mask.clone()
    if windows.manifest.get("start_token") is not None:
        documents[:, 0] = START
    mask[:, 1:] &= ~later_first_tokens(documents)
    return replace(windows, manifest=manifest, documents=documents, mask=mask)


def later_first_tokens(documents: Tensor) -> Tensor:
    """(batch, seq - 1) bool: whether tokens 1, 2, … begin a new document after another document."""
    return (documents[:, 1:] != documents[:, :-1]) & (documents[:, :-1] != START)


def single_document(documents: Tensor | None) -> bool:
    """Whether every window holds at most one document."""
    return documents is None or bool(((documents == documents[:, -1:]) | (documents == START)).all())


def positions(documents: Tensor) -> Tensor:
    """(batch, seq) int64: each token's position in its document. Counts from 0, or from 1 after a start token."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    first = index.where(begins, torch.zeros_like(index)).cummax(1).values
    return index - first + ((documents[:, :1] == START) & (documents != START)).long()


def visible(documents: Tensor, window: int | None = None) -> Tensor:
    """(batch, 1, seq, seq) bool: whether the token on the third axis attends to the token on the last axis.

    With `window`, a token attends to itself and the `window` - 1 positions before it.
    """
    ones = torch.ones(documents.shape[1], documents.shape[1], dtype=torch.bool, device=documents.device)
    seen = (documents[:, :, None] == documents[:, None, :]) | (documents[:, None, :] == START)
    seen &= ones.tril()
    if window is not None:
        at = positions(documents)
        seen &= at[:, :, None] - at[:, None, :] < window
    return seen[:, None]


def sliding_window(config: Any, length: int) -> int | None:
    """The model's sliding window in tokens, or None if the model attends to all of `length` tokens."""
    window = getattr(config, "sliding_window", None)
    return window if window is not None and window < length else None


def attention(documents: Tensor | None, model: Any) -> dict[str, Any]:
    """Arguments with which a transformers `model` separates documents; {} if each window holds one document."""
    if documents is None or (not documents.is_cuda and single_document(documents)):  # `Batch.to` has looked
        return {}
    config, window = model.config, sliding_window(model.config, documents.shape[1])
    masks = {"full_attention": format_mask(visible(documents), model)}
    if window is not None:
        masks["sliding_attention"] = format_mask(visible(documents, window), model)
    layered = getattr(config, "layer_types", None) is not None and window is not None
    return {
        "position_ids": positions(documents),
        "attention_mask": masks if layered else masks["full_attention" if window is None else "sliding_attention"],
    }


def format_mask(seen: Tensor, model: Any) -> Tensor:
    """The bool mask `seen`, converted for the model: eager attention adds 0 or the smallest number to the scores."""
    if model.config._attn_implementation != "eager":
        return seen
    least = torch.finfo(model.dtype).min
    return torch.zeros(seen.shape, dtype=model.dtype, device=seen.device).masked_fill(~seen, least)


@torch.no_grad()
def check_packing(model: LogitModel, name: str, packing: str, seq_len: int) -> None:
    """Raises QCompressError if the model cannot separate the documents of a window. `packing` "full" always passes.

    The test: a document must have the same hidden states alone and after another document.
    """
    if packing == "full":
        return
    config, kind = model.model.config, type(model.model).__name__
    others = set(getattr(config, "layer_types", None) or ()) - KINDS
    if others:
        raise QCompressError(f"{name}: {kind} has layers of type {', '.join(sorted(others))}, {CURE}")
    length = PROBE + (sliding_window(config, seq_len) or 0)
    ids = (torch.arange(1 + BEFORE + length, device=model.model.device) % min(config.vocab_size, 1009))[None]
    documents = torch.tensor([[START, *[0] * BEFORE, *[1] * length]], device=ids.device)
    alone = model.side(torch.cat([ids[:, :1], ids[:, 1 + BEFORE :]], 1)).hidden[:, 1:].float()
    try:
        packed = model.side(ids, documents).hidden[:, 1 + BEFORE :].float()
    except (TypeError, ValueError) as error:
        raise QCompressError(f"{name}: {kind} rejects the document mask ({error}), {CURE}") from error
    difference = float(((packed - alone).norm(dim=-1) / alone.norm(dim=-1)).max())
    if not difference <= TOLERANCE.get(model.model.dtype, ROUGH):
        raise QCompressError(
            f"{name}: a preceding document changes the hidden states of {kind} by {difference:.2g}, {CURE}"
        )


def check_on_policy(model: Any, packing: str, seq_len: int) -> None:
    """Raises QCompressError if an on-policy stage cannot separate documents.

    During generation a sliding window drops old tokens from the cache, so the document mask no longer fits.
    """
    window = sliding_window(model.config, seq_len)
    if packing != "full" and window is not None:
        kind = type(model).__name__
        raise QCompressError(
            f"on_policy: {kind} generates with a sliding window of {window} tokens, shorter than --seq-len {seq_len}, "
            f"{CURE}, or lower --seq-len"
        )

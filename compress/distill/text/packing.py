"""Documents that share a window do not see one another: which tokens each one attends to, and where it stands.

A token sees its own document up to itself, and the window's start token where there is one. Positions count from the
beginning of the document, with the start token before it as 0. So every document computes what it would compute alone
behind a start token of its own, whatever its neighbours are; of a document that is cut by the border of two windows
each part is one. The first token of a later document follows nothing that it sees: it counts in no loss.

`documents` (batch, seq) int64 says which document a token is of; START is a start token, which all of its row see.
Sliding windows slide within documents. Windows of one document each take the model's plain path, without a mask.
"""

from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from calibration.windows import Windows
from compress.core.errors import QCompressError
from compress.losses import LogitSource

START = -1
KINDS = {"full_attention", "sliding_attention"}
PROBE, BEFORE = 8, 3  # tokens of a document that is looked at, and of the one before it
TOLERANCE = {torch.float32: 1e-3}  # relative, of a token's hidden state; of shorter numbers ROUGH
ROUGH = 0.1
REFUSED = "so documents in a window cannot be kept apart; give --packing full"


class Batch(NamedTuple):
    """Some windows: (batch, seq) ids, which of them count, and documents, None where all attends to all before it."""

    ids: Tensor
    mask: Tensor
    documents: Tensor | None = None

    def rows(self, chosen: Any) -> "Batch":
        """Those windows."""
        documents = None if self.documents is None else self.documents[chosen]
        return Batch(self.ids[chosen], self.mask[chosen], documents)

    def to(self, device: torch.device) -> "Batch":
        documents = None if self.documents is None else self.documents.to(device)
        return Batch(self.ids.to(device), self.mask.to(device), documents)

    def split(self, size: int) -> list["Batch"]:
        """Parts of `size` windows, the last of what is left."""
        return [self.rows(slice(first, first + size)) for first in range(0, len(self.ids), size)]


class Sided(Protocol):
    """A model that tells its side of the loss."""

    model: Any

    def side(self, ids: Tensor, documents: Tensor | None = None) -> LogitSource: ...


def as_batch(windows: Windows) -> Batch:
    """All windows as one batch."""
    return Batch(windows.ids, windows.mask, windows.documents)


def pack(windows: Windows, packing: str) -> Windows:
    """The windows with `documents` and mask as `packing` wants them: "full" is none, and the mask as it was."""
    manifest = windows.manifest | {"packing": packing}
    if packing == "full" or windows.documents is None:
        return replace(windows, manifest=manifest, documents=None)
    documents, mask = windows.documents.clone(), windows.mask.clone()
    if windows.manifest.get("start_token") is not None:
        documents[:, 0] = START
    mask[:, 1:] &= ~unannounced(documents)
    return replace(windows, manifest=manifest, documents=documents, mask=mask)


def unannounced(documents: Tensor) -> Tensor:
    """(batch, seq - 1) bool: of tokens 1, 2, …, the first ones of documents that do not begin right after a start."""
    return (documents[:, 1:] != documents[:, :-1]) & (documents[:, :-1] != START)


def one_each(documents: Tensor | None) -> bool:
    """Whether no window holds two documents."""
    return documents is None or bool(((documents == documents[:, -1:]) | (documents == START)).all())


def positions(documents: Tensor) -> Tensor:
    """(batch, seq) int64: the place of every token in its document, from 0, or from 1 behind a start token."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    first = index.where(begins, torch.zeros_like(index)).cummax(1).values
    return index - first + ((documents[:, :1] == START) & (documents != START)).long()


def visible(documents: Tensor, window: int | None = None) -> Tensor:
    """(batch, 1, seq, seq) bool: which token (last axis) each one attends to, of the last `window` positions."""
    ones = torch.ones(documents.shape[1], documents.shape[1], dtype=torch.bool, device=documents.device)
    seen = (documents[:, :, None] == documents[:, None, :]) | (documents[:, None, :] == START)
    seen &= ones.tril()
    if window is not None:
        at = positions(documents)
        seen &= at[:, :, None] - at[:, None, :] < window
    return seen[:, None]


def slides(config: Any, length: int) -> int | None:
    """The model's sliding window where it is shorter than `length` tokens."""
    window = getattr(config, "sliding_window", None)
    return window if window is not None and window < length else None


def attention(documents: Tensor | None, model: Any) -> dict[str, Any]:
    """Keyword arguments by which a transformers `model` keeps documents apart; {} where there is nothing to."""
    if documents is None or one_each(documents):
        return {}
    config, window = model.config, slides(model.config, documents.shape[1])
    masks = {"full_attention": form(visible(documents), model)}
    if window is not None:
        masks["sliding_attention"] = form(visible(documents, window), model)
    layered = getattr(config, "layer_types", None) is not None and window is not None
    return {
        "position_ids": positions(documents),
        "attention_mask": masks if layered else masks["full_attention" if window is None else "sliding_attention"],
    }


def form(seen: Tensor, model: Any) -> Tensor:
    """A mask as the model's attention reads it: bool for sdpa, added to the scores where that is done by hand."""
    if model.config._attn_implementation != "eager":
        return seen
    least = torch.finfo(model.dtype).min
    return torch.zeros(seen.shape, dtype=model.dtype, device=seen.device).masked_fill(~seen, least)


@torch.no_grad()
def check_packing(model: Sided, name: str, packing: str, seq_len: int) -> None:
    """QCompressError for a model whose documents do see one another in windows of `seq_len`, and should not."""
    if packing == "full":
        return
    config, kind = model.model.config, type(model.model).__name__
    others = set(getattr(config, "layer_types", None) or ()) - KINDS
    if others:
        raise QCompressError(f"{name}: a {kind} has {', '.join(sorted(others))}, {REFUSED}")
    length = PROBE + (slides(config, seq_len) or 0)
    ids = (torch.arange(1 + BEFORE + length, device=model.model.device) % min(config.vocab_size, 1009))[None]
    documents = torch.tensor([[START, *[0] * BEFORE, *[1] * length]], device=ids.device)
    alone = model.side(torch.cat([ids[:, :1], ids[:, 1 + BEFORE :]], 1)).hidden[:, 1:].float()
    try:
        packed = model.side(ids, documents).hidden[:, 1 + BEFORE :].float()
    except (TypeError, ValueError) as error:
        raise QCompressError(f"{name}: a {kind} takes no mask of documents ({error}), {REFUSED}") from error
    away = float(((packed - alone).norm(dim=-1) / alone.norm(dim=-1)).max())
    if not away <= TOLERANCE.get(model.model.dtype, ROUGH):
        raise QCompressError(f"{name}: a {kind} reads a document otherwise behind another, by {away:.2g}, {REFUSED}")


def check_on_policy(model: Any, packing: str, seq_len: int) -> None:
    """QCompressError where a student's memory of what it said forgets what a mask of documents speaks of."""
    window = slides(model.config, seq_len)
    if packing != "full" and window is not None:
        kind = type(model).__name__
        raise QCompressError(
            f"on_policy: a {kind} forgets all but {window} of {seq_len} tokens while it writes, {REFUSED}, or "
            "a shorter --seq-len"
        )

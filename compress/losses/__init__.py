"""The distillation loss α · T² · D(p_teacher, p_student) + (1 − α) · CE, computed without whole logits in memory.

`targets` holds the teacher's distributions, dense or sparse. `divergence` is the table of D. `softmax` computes softmax
and cross-entropy. `chunked` computes the loss and its gradient in the forward pass, for a few rows of logits at a time.
`buffers` has the sizes that estimates of memory count; importing it alone does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.losses.chunked import Loss as Loss
    from compress.losses.chunked import cross_entropy as cross_entropy
    from compress.losses.chunked import distill_loss as distill_loss
    from compress.losses.chunked import next_tokens as next_tokens
    from compress.losses.chunked import token_mean as token_mean
    from compress.losses.chunked import unmasked as unmasked
    from compress.losses.divergence import DIVERGENCES as DIVERGENCES
    from compress.losses.targets import Head as Head
    from compress.losses.targets import LogitSource as LogitSource
    from compress.losses.targets import Sparse as Sparse
    from compress.losses.targets import Targets as Targets
    from compress.losses.targets import find_head as find_head

NAMES = {
    **dict.fromkeys(("Loss", "cross_entropy", "distill_loss", "next_tokens", "token_mean", "unmasked"), "chunked"),
    "DIVERGENCES": "divergence",
    **dict.fromkeys(("Head", "LogitSource", "Sparse", "Targets", "find_head"), "targets"),
}


def __getattr__(name: str) -> Any:
    """A name of a module that needs torch, imported at its first use (PEP 562)."""
    if name in NAMES:
        return getattr(import_module(f"compress.losses.{NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

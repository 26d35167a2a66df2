"""Gradient checkpointing: only each block's input is stored, and the block runs again in the backward pass.

Loss and gradients stay the same. It takes a third more time; activations of one block exist at a time.
https://arxiv.org/abs/1604.06174
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compress.core.errors import QCompressError


@contextmanager
def recomputing(model: Any, on: bool) -> Iterator[None]:
    """A block in which a transformers `model` recomputes its blocks in the backward pass, if `on`.

    Only the blocks themselves get training mode, so dropout inside them stays off. QCompressError for a model without
    support.
    """
    if not on:
        yield
        return
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise QCompressError(
            f"gradient_checkpointing: {type(model).__name__} does not support it; leave out --gradient-checkpointing"
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    blocks = [part for part in model.modules() if getattr(part, "gradient_checkpointing", False)]
    for block in blocks:
        block.training = True
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        for block in blocks:
            block.training = False

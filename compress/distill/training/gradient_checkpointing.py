"""Gradient checkpointing: of every block only the input is kept, and the block is run again when gradients come back.

The same loss and gradients for a third more time; activations of one block at a time instead of all.
https://arxiv.org/abs/1604.06174
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compress.core.errors import QCompressError


@contextmanager
def recomputing(model: Any, on: bool) -> Iterator[None]:
    """Inside, the blocks of a transformers `model` are run again in the backward pass, if `on`.

    Only the blocks themselves are told that they train, so that no dropout inside them wakes up. QCompressError for a
    model that cannot.
    """
    if not on:
        yield
        return
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise QCompressError(f"gradient_checkpointing: a {type(model).__name__} cannot; leave it out")
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

"""Gradient checkpointing: the forward pass stores only each block's input; the backward pass runs the block again.

Only one block's activations are in memory at a time. Training takes a third longer; loss and gradients stay the same.
https://arxiv.org/abs/1604.06174
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compress.core.errors import QCompressError


@contextmanager
def recomputing(model: Any, on: bool) -> Iterator[None]:
    """Inside `with recomputing(model, True)`, the backward pass of a transformers model uses gradient checkpointing.

    `on` False changes nothing. Only the block modules enter training mode, so dropout inside a block stays off.
    Raises QCompressError if the model does not support gradient checkpointing.
    """
    if not on:
        yield
        return
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise QCompressError(
            f"{type(model).__name__} does not support gradient checkpointing; leave out --gradient-checkpointing"
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

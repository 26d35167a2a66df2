"""LoRA: low-rank adapters (peft). Training changes only the adapters; they are merged before the student is written.

    W' = W + (alpha / rank) B A,     https://arxiv.org/abs/2106.09685

`plain_parameters` yields merged weights under their original names, so a written checkpoint never contains adapters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import QCompressError

INSIDE = ".base_layer"  # peft's name for the original linear inside an adapter module


@contextmanager
def adapters(model: Any, rank: int, alpha: float | None = None, seed: int = 0) -> Iterator[None]:
    """Inside `with adapters(model, rank)`, all linears except the head have adapters, and only these are trainable.

    Rank 0 adds no adapters. `seed` initializes A. The end of the `with` removes the adapters without merging, so call
    `plain_parameters` inside it. Raises QCompressError if peft is not installed.
    """
    if not rank:
        yield
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise QCompressError("--lora-rank: the package peft is missing; pip install 'qcompress[train]'") from None
    settings = LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, target_modules=linears(model))  # type: ignore[arg-type]
    learning = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model)
    try:
        yield
    finally:
        for name, module in adapted(model):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(learning[name])
        del model.peft_config  # otherwise peft would add the next adapters as a second set


def linears(model: Any) -> list[str]:
    """The full module names of all linears except the head."""
    head = model.get_output_embeddings()
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and part is not head]


def adapted(model: nn.Module) -> list[tuple[str, Any]]:
    """The (name, module) pairs of all modules that have an adapter."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "get_delta_weight")]


def plain_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The (name, parameter) pairs that the model would have without adapters. The values include the adapters."""
    wrapped = dict(adapted(model))
    for name, parameter in model.named_parameters():
        owner, _, kind = name.rpartition(".")
        layer = wrapped.get(owner.removesuffix(INSIDE)) if owner.endswith(INSIDE) else None
        if layer is not None:
            plain = f"{owner.removesuffix(INSIDE)}.{kind}"
            yield plain, parameter + layer.get_delta_weight("default") if kind == "weight" else parameter
        elif not any(part.startswith("lora_") for part in name.split(".")):
            yield name, parameter

"""Low-rank adapters, by peft: only they learn, and they are added to their weights before anything is written.

    W' = W + (alpha / rank) B A,     https://arxiv.org/abs/2106.09685

`Adapted` names the model's weights as if there were no adapters, each with its product added: what is judged, kept and
written is a plain checkpoint.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import QCompressError

INSIDE = ".base_layer"  # where peft puts the linear that it wraps


@contextmanager
def adapters(model: Any, rank: int, alpha: float | None = None, seed: int = 0) -> Iterator[None]:
    """Inside, every linear of the blocks has an adapter and nothing else learns. Outside, `model` is a plain one.

    Rank 0 does nothing at all; A is drawn from `seed`. On leaving, the adapters are dropped, not merged:
    `plain_parameters` gave the sums. QCompressError where peft is not installed.
    """
    if not rank:
        yield
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise QCompressError("lora_rank: needs peft; pip install 'qcompress[train]'") from None
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
        del model.peft_config  # peft's own mark, by which it would take the next adapters for a second set


def linears(model: Any) -> list[str]:
    """Full names of every linear but the head."""
    head = model.get_output_embeddings()
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and part is not head]


def adapted(model: nn.Module) -> list[tuple[str, Any]]:
    """Modules that carry an adapter, by name."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "get_delta_weight")]


def plain_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by the name it has without adapters, their products added to it."""
    wrapped = dict(adapted(model))
    for name, parameter in model.named_parameters():
        owner, _, kind = name.rpartition(".")
        layer = wrapped.get(owner.removesuffix(INSIDE)) if owner.endswith(INSIDE) else None
        if layer is not None:
            plain = f"{owner.removesuffix(INSIDE)}.{kind}"
            yield plain, parameter + layer.get_delta_weight("default") if kind == "weight" else parameter
        elif not any(part.startswith("lora_") for part in name.split(".")):
            yield name, parameter

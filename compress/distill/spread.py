"""Parameters, gradients and Adam's moments spread over processes: FSDP2, where accelerate's config asks for it.

    https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html

accelerate itself shards on GPUs only and would train replicas elsewhere in silence, so only its settings are read here.
A spread parameter is a part of itself, but for the time of its module's forward: what needs the student whole runs
`inside`. `joined` ends it: a student that is spread is never seen outside the training loop.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from compress.errors import QCompressError
from compress.model.blocks import find_layers, load_whole

T = TypeVar("T")
REFUSED = {  # what a launcher asks for, by its environment variable; what works instead
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
REFUSED_OF_FSDP = {
    "FSDP_OFFLOAD_PARAMS": "leave out fsdp_offload_params, or use --lora-rank",
    "FSDP_ACTIVATION_CHECKPOINTING": "leave out fsdp_activation_checkpointing and use --gradient-checkpointing",
}


def asked(name: str) -> bool:
    """Whether a launcher has set this flag."""
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


def check_launch() -> bool:
    """Whether the launcher wants parameters spread. QCompressError for what would not train, or train otherwise."""
    for name, what in REFUSED.items():
        if asked(name):
            raise QCompressError(
                f"accelerate's config asks for {what}, which distill does not know; use distributed_type MULTI_GPU "
                "(torchrun does), or FSDP with fsdp_version: 2"
            )
    if not asked("ACCELERATE_USE_FSDP"):
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise QCompressError(f"accelerate's config asks for FSDP version {version}; set fsdp_version: 2 there")
    for name, cure in REFUSED_OF_FSDP.items():
        if asked(name):
            raise QCompressError(f"{name.lower()}: distill does not know it; {cure}")
    return True


class Spread(nn.Module):
    """An objective whose parameters lie in parts over all processes: those of each block, and all others together."""

    def __init__(self, objective: nn.Module, model: Any):
        """`model` is the student inside `objective`. Parameters are gathered as they are, in float32: autocast rounds
        what a product reads, as it does in replicas, so that losses and held-out scores are of one precision."""
        super().__init__()
        self.objective = objective
        again = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in ("false", "shard_grad_op")
        for block in find_layers(model)[1]:
            fully_shard(block, reshard_after_forward=again)
        fully_shard(self)

    def forward(self, *arguments: Any, work: Callable[..., Any] | None = None) -> Any:
        """The objective of the arguments, or whatever `work` makes while the parameters are whole."""
        return (work or self.objective)(*arguments)


@torch.no_grad()
def inside(module: nn.Module, work: Callable[[], T]) -> T:
    """What `work` returns, with the parameters of `module` as it needs them. All processes call this together."""
    if not isinstance(module, Spread):
        return work()
    try:
        return module(work=work)  # type: ignore[no-any-return]
    finally:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def unsynced(accelerator: Accelerator, module: nn.Module, on: bool) -> AbstractContextManager[None]:
    """Inside, where `on`, replicas do not add up their gradients yet: another micro-batch of the same step follows.

    Spread gradients are added at once: what waits would be whole in every process.
    """
    return accelerator.no_sync(module) if on and not isinstance(module, Spread) else nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """A copy in main memory of a tensor that may be spread over processes."""
    return gathered(tensor).to("cpu", copy=True)


def gathered(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread over processes, which call this together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is spread over processes; scalars stay whole."""
    if not hasattr(like, "full_tensor") or tensor.ndim == 0:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def joined(model: Any, weights: dict[str, Tensor]) -> Any:
    """A plain model of the same config with these weights, in float32, where a spread one was."""
    return load_whole(model.config.to_dict(), weights.__getitem__, torch.float32)


def join(module: nn.Module) -> None:
    """Make the parameters of a module that has no block in it whole again. All processes call this together."""
    for name, parameter in list(module.named_parameters()):
        owner, _, last = name.rpartition(".")
        learned = nn.Parameter(gathered(parameter.detach()).clone(), requires_grad=parameter.requires_grad)
        setattr(module.get_submodule(owner), last, learned)

"""Training in several processes, as accelerate's config requests: replicas, FSDP2, or DeepSpeed's ZeRO 1 and 2.

    https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html

FSDP2 shards parameters, gradients and Adam's moments. ZeRO (`deepspeed`) shards moments, and in stage 2 gradients too.
This file reads accelerate's settings and shards with PyTorch: accelerate itself would train replicas on CPUs without a
warning. FSDP2 gathers a parameter only during the forward pass of its module, so `run_unsharded` runs the code that
needs all parameters at once. `unsharded_model` ends the sharding before the training loop returns the student.
"""

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import patch_environment
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from compress.core.device import has_bfloat16, pick_device
from compress.core.errors import QCompressError
from compress.distill.sharding.deepspeed import STAGES, Zero, is_partitioned, load_zero, zero_moments
from compress.model.blocks import find_blocks, load_all

T = TypeVar("T")
DEEPSPEED, FSDP = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"
UNSUPPORTED = {  # environment variable of the launcher -> the feature's name in messages
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
UNSUPPORTED_FSDP = {  # environment variable -> the cure in the message
    "FSDP_OFFLOAD_PARAMS": "leave out fsdp_offload_params, or use --lora-rank",
    "FSDP_ACTIVATION_CHECKPOINTING": "leave out fsdp_activation_checkpointing and use --gradient-checkpointing",
}

PARTS = "set zero_stage: 1 or 2; FSDP with fsdp_version: 2 also shards parameters, MULTI_GPU shards nothing"
WHOLE_STEP = "leave it out: --batch-size counts the windows of a whole step"
NO_OFFLOAD = "leave it out, or use --lora-rank"
DEEPSPEED_SETTINGS = {  # key -> environment variable, supported values (the default first), the cure in the message
    "deepspeed_config_file": ("DEEPSPEED_CONFIG_FILE", ("none",), "leave it out and set zero_stage: 1 or 2"),
    "zero_stage": ("DEEPSPEED_ZERO_STAGE", STAGES, PARTS),
    "offload_optimizer_device": ("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", ("none",), NO_OFFLOAD),
    "offload_param_device": ("DEEPSPEED_OFFLOAD_PARAM_DEVICE", ("none",), NO_OFFLOAD),
    "gradient_accumulation_steps": ("GRADIENT_ACCUMULATION_STEPS", ("1",), WHOLE_STEP),
    "mixed_precision": (
        "MIXED_PRECISION",
        ("no", "bf16"),
        "leave it out: distill uses bfloat16 on GPUs that support it, else float32",
    ),
    "gradient_clipping": ("GRADIENT_CLIPPING", ("none", "1.0", "1"), "leave it out: distill clips gradients at norm 1"),
}


def is_set(name: str) -> bool:
    """Whether the environment variable `name` is set to 1, true or yes."""
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


def check_launch() -> str | None:
    """The sharding that the launcher requests: FSDP, DEEPSPEED, or None for replicas.

    Raises QCompressError if the launcher sets anything that distill does not support.
    """
    for name, feature in UNSUPPORTED.items():
        if is_set(name):
            raise QCompressError(
                f"accelerate's config requests {feature}: distill does not support it; use distributed_type MULTI_GPU "
                "(as torchrun does), FSDP with fsdp_version: 2, or DEEPSPEED with zero_stage: 1 or 2"
            )
    if is_set(DEEPSPEED):
        check_deepspeed()
        return DEEPSPEED
    if not is_set(FSDP):
        return None
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise QCompressError(f"accelerate's config requests FSDP version {version}; set fsdp_version: 2")
    for name, cure in UNSUPPORTED_FSDP.items():
        if is_set(name):
            raise QCompressError(f"accelerate's config sets {name.lower()}: distill does not support it; {cure}")
    return FSDP


def check_deepspeed() -> None:
    """Raises QCompressError if DeepSpeed is not installed, or if a DeepSpeed setting would have no effect here."""
    for option, (name, supported, cure) in DEEPSPEED_SETTINGS.items():
        value = os.environ.get(f"ACCELERATE_{name}", supported[0])
        if value.lower() not in supported:
            raise QCompressError(f"accelerate's config sets {option} to {value}: distill does not support it; {cure}")
    if find_spec("deepspeed") is None:
        raise QCompressError(
            "accelerate's config requests DeepSpeed, which is not installed; pip install 'qcompress[deepspeed]'"
        )


def make_accelerator(device: str = "auto") -> Accelerator:
    """The accelerator of this process. `device` is the value of --device. GPUs use bfloat16 if they support it.

    Raises QCompressError if the launcher sets anything that distill does not support.
    """
    check_launch()
    cpu = pick_device(device) == "cpu"
    precision = "no" if cpu or not has_bfloat16() else "bf16"
    with patch_environment(**{DEEPSPEED: "false"}):
        return Accelerator(mixed_precision=precision, cpu=cpu)


class ShardedObjective(nn.Module):
    """An objective whose parameters are sharded over all processes.

    Each block is one unit of sharding, and all other parameters together are another.
    """

    def __init__(self, objective: nn.Module, model: Any):
        """`model` is the student inside `objective`.

        Parameters are gathered in float32, and autocast rounds the inputs of matrix products, as in replicas. Losses
        and evaluation scores therefore have the same precision as with replicas.
        """
        super().__init__()
        self.objective = objective
        reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in ("false", "shard_grad_op")
        for block in find_blocks(model)[1]:
            fully_shard(block, reshard_after_forward=reshard)
        fully_shard(self)

    def forward(self, *arguments: Any, work: Callable[..., Any] | None = None) -> Any:
        """Call the objective, or `work` if it is given. During the call all parameters are gathered."""
        return (work or self.objective)(*arguments)


@torch.no_grad()
def run_unsharded(module: nn.Module, work: Callable[[], T]) -> T:
    """Call `work` while all parameters are gathered; returns its result. All processes must call this together."""
    if not isinstance(module, ShardedObjective):
        return work()
    try:
        return module(work=work)  # type: ignore[no-any-return]
    finally:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def no_sync(accelerator: Accelerator, module: nn.Module, on: bool) -> AbstractContextManager[None]:
    """Context for the backward pass of one micro-batch. With `on`, replicas do not sum gradients over processes yet.

    `on` is True for all micro-batches of a step but the last. FSDP ignores `on` and sums after every micro-batch,
    because gradients that are not summed are not sharded and need more memory. DeepSpeed's engine gets the same flag.
    """
    if isinstance(module, Zero):
        module.engine.set_gradient_accumulation_boundary(not on)
        return nullcontext()
    return accelerator.no_sync(module) if on and not isinstance(module, ShardedObjective) else nullcontext()


def backward(accelerator: Accelerator, module: nn.Module, loss: Tensor) -> None:
    """Run the backward pass. The result is the gradient of the sum of all processes' losses."""
    loss = loss * accelerator.num_processes  # replicas, FSDP and DeepSpeed average gradients over processes
    if isinstance(module, Zero):
        module.engine.backward(loss)
    else:
        accelerator.backward(loss)


def update(module: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> float:
    """Take one optimizer step and clear the gradients; returns the gradient norm before clipping to `max_norm`.

    If the norm is not finite, the weights do not change.
    """
    if isinstance(module, Zero):
        return module.step()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(full_tensor(nn.utils.clip_grad_norm_(parameters, max_norm)))
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad()
    return norm


def moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The optimizer state of a parameter, unsharded and in main memory."""
    state = zero_moments(optimizer, parameter) if is_partitioned(parameter) else optimizer.state.get(parameter, {})
    return {key: copy_to_cpu(torch.as_tensor(value)) for key, value in state.items()}


def load_moments(optimizer: torch.optim.Optimizer, states: dict[nn.Parameter, dict[str, Tensor]]) -> None:
    """Load unsharded moments into the optimizer. The values of the parameters must be loaded before."""
    if any(is_partitioned(parameter) for parameter in states):
        for parameter, moments_of in states.items():
            load_zero(optimizer, parameter, moments_of)
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index = {parameter: number for number, parameter in enumerate(parameters)}
    state = {
        index[parameter]: {key: shard_like(value, parameter) for key, value in moments_of.items()}
        for parameter, moments_of in states.items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def copy_to_cpu(tensor: Tensor) -> Tensor:
    """An unsharded copy of a tensor, in main memory. All processes must call this together."""
    return full_tensor(tensor).to("cpu", copy=True)


def full_tensor(tensor: Tensor) -> Tensor:
    """Unshard a tensor. A tensor that is not sharded is returned as it is. All processes must call this together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The unsharded `tensor`, sharded in the same way as `like`. Scalars stay unsharded."""
    if not hasattr(like, "full_tensor") or tensor.ndim == 0:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def unsharded_model(model: Any, weights: dict[str, Tensor]) -> Any:
    """A new model with the config of `model` and with `weights`, in float32 and unsharded."""
    return load_all(model.config.to_dict(), weights.__getitem__, torch.float32)


def unshard(module: nn.Module) -> None:
    """Replace each sharded parameter of a module by an unsharded one. All processes must call this together."""
    for name, parameter in list(module.named_parameters()):
        owner, _, last = name.rpartition(".")
        whole = nn.Parameter(full_tensor(parameter.detach()).clone(), requires_grad=parameter.requires_grad)
        setattr(module.get_submodule(owner), last, whole)

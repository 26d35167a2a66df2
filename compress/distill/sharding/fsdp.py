"""A training over processes, as accelerate's config asks for it: replicas, FSDP2, or DeepSpeed's ZeRO 1 and 2.

    https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html

FSDP2 shards parameters, gradients and Adam's moments; ZeRO (`deepspeed`) shards moments, and with stage 2 gradients.
accelerate shards on GPUs only and trains replicas elsewhere without a warning, so only its settings are read here.
A sharded parameter is whole only during its module's forward pass: `run_unsharded` runs code that needs the whole
student. `unsharded_model` ends the sharding, so a sharded student never leaves the training loop.
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

from compress.core.device import pick_device
from compress.core.errors import QCompressError
from compress.distill.sharding.deepspeed import STAGES, Zero, divided, load_zero, zero_moments
from compress.model.blocks import find_blocks, load_all

T = TypeVar("T")
DEEPSPEED, FSDP = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"
REFUSED = {  # what a launcher asks for, by its environment variable
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
REFUSED_OF_FSDP = {
    "FSDP_OFFLOAD_PARAMS": "leave out fsdp_offload_params, or use --lora-rank",
    "FSDP_ACTIVATION_CHECKPOINTING": "leave out fsdp_activation_checkpointing and use --gradient-checkpointing",
}

PARTS = "set zero_stage: 1 or 2; FSDP with fsdp_version: 2 also spreads parameters, MULTI_GPU spreads nothing"
WHOLE_STEP = "leave it out: --batch-size is a whole step's windows"
NO_OFFLOAD = "leave it out, or use --lora-rank"
REFUSED_OF_DEEPSPEED = {  # the values that are known, the first where none is set; what to do otherwise
    "deepspeed_config_file": ("DEEPSPEED_CONFIG_FILE", ("none",), "leave it out and set zero_stage: 1 or 2"),
    "zero_stage": ("DEEPSPEED_ZERO_STAGE", STAGES, PARTS),
    "offload_optimizer_device": ("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", ("none",), NO_OFFLOAD),
    "offload_param_device": ("DEEPSPEED_OFFLOAD_PARAM_DEVICE", ("none",), NO_OFFLOAD),
    "gradient_accumulation_steps": ("GRADIENT_ACCUMULATION_STEPS", ("1",), WHOLE_STEP),
    "mixed_precision": ("MIXED_PRECISION", ("no", "bf16"), "leave it out: bfloat16 where a GPU takes it, else float32"),
    "gradient_clipping": ("GRADIENT_CLIPPING", ("none", "1.0", "1"), "leave it out: distill clips at 1"),
}


def asked(name: str) -> bool:
    """Whether a launcher has set this flag."""
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


def check_launch() -> str | None:
    """FSDP or DEEPSPEED where the launcher wants the training spread so, None where it wants replicas.

    QCompressError for what would not train, or train otherwise.
    """
    for name, what in REFUSED.items():
        if asked(name):
            raise QCompressError(
                f"accelerate's config asks for {what}, which distill does not know; use distributed_type MULTI_GPU "
                "(torchrun does), FSDP with fsdp_version: 2, or DEEPSPEED with zero_stage: 1 or 2"
            )
    if asked(DEEPSPEED):
        check_deepspeed()
        return DEEPSPEED
    if not asked(FSDP):
        return None
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise QCompressError(f"accelerate's config asks for FSDP version {version}; set fsdp_version: 2 there")
    for name, cure in REFUSED_OF_FSDP.items():
        if asked(name):
            raise QCompressError(f"{name.lower()}: distill does not know it; {cure}")
    return FSDP


def check_deepspeed() -> None:
    """QCompressError for settings of DeepSpeed that would be ignored, and where it is not installed."""
    for option, (name, known, cure) in REFUSED_OF_DEEPSPEED.items():
        value = os.environ.get(f"ACCELERATE_{name}", known[0])
        if value.lower() not in known:
            raise QCompressError(f"accelerate's config sets {option} to {value}, which distill does not know; {cure}")
    if find_spec("deepspeed") is None:
        raise QCompressError("accelerate's config asks for DeepSpeed; pip install 'qcompress[deepspeed]'")


def make_accelerator(device: str = "auto") -> Accelerator:
    """This process, alone or among those of a launcher; bfloat16 activations where a GPU takes them.

    QCompressError for a launcher that asks for what is not known here.
    """
    check_launch()
    cpu = pick_device(device) == "cpu"
    precision = "no" if cpu or not torch.cuda.is_bf16_supported() else "bf16"
    with patch_environment(**{DEEPSPEED: "false"}):
        return Accelerator(mixed_precision=precision, cpu=cpu)


class ShardedObjective(nn.Module):
    """An objective whose parameters lie in parts over all processes: those of each block, and all others together."""

    def __init__(self, objective: nn.Module, model: Any):
        """`model` is the student inside `objective`. Parameters are gathered as they are, in float32: autocast rounds
        what a product reads, as it does in replicas, so that losses and held-out scores are of one precision."""
        super().__init__()
        self.objective = objective
        again = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in ("false", "shard_grad_op")
        for block in find_blocks(model)[1]:
            fully_shard(block, reshard_after_forward=again)
        fully_shard(self)

    def forward(self, *arguments: Any, work: Callable[..., Any] | None = None) -> Any:
        """The objective of the arguments, or whatever `work` makes while the parameters are whole."""
        return (work or self.objective)(*arguments)


@torch.no_grad()
def run_unsharded(module: nn.Module, work: Callable[[], T]) -> T:
    """What `work` returns, with the parameters of `module` as it needs them. All processes call this together."""
    if not isinstance(module, ShardedObjective):
        return work()
    try:
        return module(work=work)  # type: ignore[no-any-return]
    finally:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def no_sync(accelerator: Accelerator, module: nn.Module, on: bool) -> AbstractContextManager[None]:
    """Inside, where `on`, replicas do not add up their gradients yet: another micro-batch of the same step follows.

    FSDP's gradients are added at once: what waits would be whole in every process. DeepSpeed knows what may wait.
    """
    if isinstance(module, Zero):
        module.engine.set_gradient_accumulation_boundary(not on)
        return nullcontext()
    return accelerator.no_sync(module) if on and not isinstance(module, ShardedObjective) else nullcontext()


def backward(accelerator: Accelerator, module: nn.Module, loss: Tensor) -> None:
    """Gradients of the sum of all processes' losses."""
    loss = loss * accelerator.num_processes  # whatever adds them up takes the mean
    if isinstance(module, Zero):
        module.engine.backward(loss)
    else:
        accelerator.backward(loss)


def update(module: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> float:
    """One step of the optimizer, and no gradients after it; returns their norm, before they were clipped to `max_norm`.

    Nothing moves where that is not finite.
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
    """What the optimizer holds of a parameter, whole, in main memory."""
    held = zero_moments(optimizer, parameter) if divided(parameter) else optimizer.state.get(parameter, {})
    return {key: whole(torch.as_tensor(value)) for key, value in held.items()}


def load_moments(optimizer: torch.optim.Optimizer, states: dict[nn.Parameter, dict[str, Tensor]]) -> None:
    """Give the optimizer the whole moments of parameters that have their values already."""
    if any(divided(parameter) for parameter in states):
        for parameter, held in states.items():
            load_zero(optimizer, parameter, held)
        return
    places = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    place_of = {parameter: place for place, parameter in enumerate(places)}
    state = {
        place_of[parameter]: {key: shard_like(value, parameter) for key, value in held.items()}
        for parameter, held in states.items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def whole(tensor: Tensor) -> Tensor:
    """A copy in main memory of a tensor that may be spread over processes."""
    return full_tensor(tensor).to("cpu", copy=True)


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread over processes, which call this together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is spread over processes; scalars stay whole."""
    if not hasattr(like, "full_tensor") or tensor.ndim == 0:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def unsharded_model(model: Any, weights: dict[str, Tensor]) -> Any:
    """A plain model of the same config with these weights, in float32, where a spread one was."""
    return load_all(model.config.to_dict(), weights.__getitem__, torch.float32)


def unshard(module: nn.Module) -> None:
    """Make the parameters of a module that has no block in it whole again. All processes call this together."""
    for name, parameter in list(module.named_parameters()):
        owner, _, last = name.rpartition(".")
        learned = nn.Parameter(full_tensor(parameter.detach()).clone(), requires_grad=parameter.requires_grad)
        setattr(module.get_submodule(owner), last, learned)

"""DeepSpeed's ZeRO: each process holds a part of Adam's moments (stage 1), and of the gradients too (stage 2).

    Rajbhandari et al. 2019, https://arxiv.org/abs/1910.02054

Every process holds all parameters. DeepSpeed joins the trained parameters of a group into one flat tensor, and each
process updates one slice of that tensor. The optimizer state belongs to slices; only this file maps slices to
parameters.
"""

import math
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

STAGES = ("2", "1")  # the first is the default
BUCKET = 2**25  # values per message (128 MiB); DeepSpeed's default would allocate 2 GB in every step


class AutocastObjective(nn.Module):
    """Runs an objective in autocast. DeepSpeed's engine turns autocast off; this module turns it on again."""

    def __init__(self, objective: nn.Module, autocast: Callable[[], AbstractContextManager[None]]):
        super().__init__()
        self.objective, self.autocast = objective, autocast

    def forward(self, *arguments: Any) -> Any:
        with self.autocast():
            return self.objective(*arguments)


class Zero(nn.Module):
    """An objective in a DeepSpeed engine. The engine clips gradients and updates this process's slice."""

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        max_norm: float,
        autocast: Callable[[], AbstractContextManager[None]],
    ):
        """Weights and gradients are float32. All processes must call this together."""
        super().__init__()
        stage = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", STAGES[0]))
        config = {
            "train_micro_batch_size_per_gpu": 1,  # DeepSpeed requires this value, but only counts samples with it
            "gradient_clipping": max_norm,
            "zero_optimization": {"stage": stage, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET},
        }
        with redirect_stdout(sys.stderr):  # stdout is for results only
            import deepspeed

            if not torch.cuda.is_available():
                deepspeed.ops.__compatible_ops__ = {}  # otherwise DeepSpeed compiles an unused kernel for a minute
            self.engine, *_ = deepspeed.initialize(
                model=AutocastObjective(objective, autocast), optimizer=optimizer, config=config
            )

    def forward(self, *arguments: Any) -> Any:
        return self.engine(*arguments)

    def step(self) -> float:
        """Take one optimizer step; returns the gradient norm before clipping, or inf if DeepSpeed skipped the step."""
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        return norm if norm >= 0 else math.inf  # DeepSpeed returns -1 for a norm that is not finite

    def end(self) -> None:
        """Free the engine's memory. Python does not free it, because hooks and parameters reference each other."""
        self.engine.destroy()


def is_partitioned(parameter: Tensor) -> bool:
    """Whether ZeRO divides the parameter's moments among the processes."""
    return hasattr(parameter, "_hp_mapping")


def local_part(optimizer: torch.optim.Optimizer, parameter: Tensor) -> tuple[Tensor, slice, slice] | None:
    """The part of a parameter that this process updates, or None if other processes update all of it.

    Returns (flat tensor, slice of the parameter, the same slice in the flat tensor).
    """
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None
    addresses = (mapping.lp_fragment_address, mapping.hp_fragment_address)
    of_parameter, of_flat = (slice(address.start, address.start + address.numel) for address in addresses)
    return optimizer.param_groups[mapping.param_group_index]["params"][0], of_parameter, of_flat


def zero_moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The full optimizer state of a partitioned parameter. All processes must call this together, after a step."""
    part, moments = local_part(optimizer, parameter), dict(next(iter(optimizer.state.values())))
    for key, value in moments.items():
        if value.ndim:  # the step count is a scalar
            moments[key] = torch.zeros(parameter.numel(), device=parameter.device)
            if part is not None:
                flat, of_parameter, of_flat = part
                moments[key][of_parameter] = optimizer.state[flat][key][of_flat]
            dist.all_reduce(moments[key])
            moments[key] = moments[key].view(parameter.shape)
    return moments


@torch.no_grad()
def load_zero(optimizer: torch.optim.Optimizer, parameter: Tensor, moments: dict[str, Tensor]) -> None:
    """Copy this process's part of a parameter's value and moments into the flat tensor and the optimizer."""
    part = local_part(optimizer, parameter)
    if part is None:
        return
    flat, of_parameter, of_flat = part
    flat[of_flat] = parameter.flatten()[of_parameter]
    for key, value in moments.items():
        if value.ndim:
            moment = optimizer.state[flat].setdefault(key, torch.zeros_like(flat))
            moment[of_flat] = value.flatten()[of_parameter].to(flat.device)
        else:
            optimizer.state[flat][key] = value.to(flat.device, copy=True)

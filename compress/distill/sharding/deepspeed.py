"""Adam's moments (stage 1), and gradients too (stage 2), spread over processes by DeepSpeed's ZeRO.

    Rajbhandari et al. 2019, https://arxiv.org/abs/1910.02054

Parameters stay whole in every process. DeepSpeed lays those that learn end to end in one tensor per group, and each
process steps a part of that: what AdamW holds is of such parts, and only this file knows which are a parameter's.
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

STAGES = ("2", "1")  # the first where the launcher names none
BUCKET = 2**25  # numbers that travel at once, 128 MiB; DeepSpeed's own 2 GB would be taken on every step


class Cast(nn.Module):
    """An objective under an autocast of its own: DeepSpeed turns off the one around its engine."""

    def __init__(self, objective: nn.Module, autocast: Callable[[], AbstractContextManager[None]]):
        super().__init__()
        self.objective, self.autocast = objective, autocast

    def forward(self, *arguments: Any) -> Any:
        with self.autocast():
            return self.objective(*arguments)


class Zero(nn.Module):
    """An objective in a DeepSpeed engine, which clips, and steps `optimizer` on this process's part."""

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        max_norm: float,
        autocast: Callable[[], AbstractContextManager[None]],
    ):
        """Weights and gradients are float32. All processes call this together."""
        super().__init__()
        stage = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", STAGES[0]))
        config = {
            "train_micro_batch_size_per_gpu": 1,  # it wants a number, and counts samples with it only
            "gradient_clipping": max_norm,
            "zero_optimization": {"stage": stage, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET},
        }
        with redirect_stdout(sys.stderr):  # results alone go to stdout
            import deepspeed

            if not torch.cuda.is_available():
                deepspeed.ops.__compatible_ops__ = {}  # or it compiles, for a minute, an operation for inference
            self.engine, *_ = deepspeed.initialize(model=Cast(objective, autocast), optimizer=optimizer, config=config)

    def forward(self, *arguments: Any) -> Any:
        return self.engine(*arguments)

    def step(self) -> float:
        """One step of the optimizer; the norm of the gradients before clipping, inf where nothing moved for it."""
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        return norm if norm >= 0 else math.inf  # -1 says that a group's norm is not finite

    def end(self) -> None:
        """Let go of the memory that the engine holds: its hooks and the parameters hold one another."""
        self.engine.destroy()


def divided(parameter: Tensor) -> bool:
    """Whether a parameter's moments lie in parts, as ZeRO has them."""
    return hasattr(parameter, "_hp_mapping")


def part(optimizer: torch.optim.Optimizer, parameter: Tensor) -> tuple[Tensor, slice, slice] | None:
    """What this process steps of a divided parameter: the tensor it lies in, which numbers of it, and where there.

    None when all of it is another process's.
    """
    known = parameter._hp_mapping  # type: ignore[attr-defined]
    if known is None:
        return None
    places = [slice(at.start, at.start + at.numel) for at in (known.lp_fragment_address, known.hp_fragment_address)]
    return optimizer.param_groups[known.param_group_index]["params"][0], places[0], places[1]


def zero_moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What the optimizer holds of a divided parameter, whole. All processes call this together, after a step."""
    mine, moments = part(optimizer, parameter), dict(next(iter(optimizer.state.values())))
    for key, value in moments.items():
        if value.ndim:  # not the count of steps
            moments[key] = torch.zeros(parameter.numel(), device=parameter.device)
            if mine is not None:
                flat, of_parameter, of_flat = mine
                moments[key][of_parameter] = optimizer.state[flat][key][of_flat]
            dist.all_reduce(moments[key])
            moments[key] = moments[key].view(parameter.shape)
    return moments


@torch.no_grad()
def load_zero(optimizer: torch.optim.Optimizer, parameter: Tensor, moments: dict[str, Tensor]) -> None:
    """Make a divided parameter's value, and these whole moments, what this process's part goes on from."""
    mine = part(optimizer, parameter)
    if mine is None:
        return
    flat, of_parameter, of_flat = mine
    flat[of_flat] = parameter.flatten()[of_parameter]
    for key, value in moments.items():
        if value.ndim:
            held = optimizer.state[flat].setdefault(key, torch.zeros_like(flat))
            held[of_flat] = value.flatten()[of_parameter].to(flat.device)
        else:
            optimizer.state[flat][key] = value.to(flat.device, copy=True)

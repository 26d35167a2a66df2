"""What a training follows from, as tensors by name: parameters, Adam's moments, the states of random numbers.

Whole tensors in main memory, however the parameters are spread over processes; all processes must call these together.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from compress.distill.sharding.fsdp import load_moments, moments, shard_like, whole

Tensors = dict[str, Tensor]
PARAMETER, OPTIMIZER, BEST, RANDOM = "parameter", "optimizer", "best", "random"


def take_state(module: nn.Module, optimizer: torch.optim.Optimizer, best: Tensors) -> Tensors:
    """Copies of everything, under "parameter.NAME", "optimizer.KEY.NAME", "best.NAME" and "random.DEVICE.RANK"."""
    tensors = over_state(best) | take_random()
    for name, parameter in module.named_parameters():
        tensors[f"{PARAMETER}.{name}"] = whole(parameter.detach())
        for key, value in moments(optimizer, parameter).items():
            tensors[f"{OPTIMIZER}.{key}.{name}"] = value
    return tensors


def load_state(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Put back what `take_state` took: parameters, moments and this process's random numbers."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(shard_like(tensors[f"{PARAMETER}.{name}"], parameter))
    states: dict[nn.Parameter, Tensors] = {}
    for full, tensor in tensors.items():
        if full.startswith(f"{OPTIMIZER}."):
            _, key, name = full.split(".", 2)
            states.setdefault(parameters[name], {})[key] = tensor
    load_moments(optimizer, states)
    load_random(tensors)


def over_state(best: Tensors) -> Tensors:
    """What is left of a stage that is over: its best weights."""
    return {f"{BEST}.{name}": tensor for name, tensor in best.items()}


def best_weights(tensors: Tensors) -> Tensors:
    """The best weights among a state's tensors."""
    return {name.removeprefix(f"{BEST}."): value for name, value in tensors.items() if name.startswith(f"{BEST}.")}


def take_random() -> Tensors:
    """The states of every process's random numbers, by device and rank."""
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    everyone: list[Any] = [own]
    if dist.is_initialized():
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, own)
    pairs = [(f"{RANDOM}.{device}.{rank}", state) for rank, one in enumerate(everyone) for device, state in one.items()]
    return dict(pairs)


def load_random(tensors: Tensors) -> None:
    """Set this process's random numbers to where they were."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    for device, put in (("cpu", torch.set_rng_state), ("cuda", torch.cuda.set_rng_state)):
        state = tensors.get(f"{RANDOM}.{device}.{rank}")
        if state is not None and (device == "cpu" or torch.cuda.is_available()):
            put(state)

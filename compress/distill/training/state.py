"""The state of a training as named tensors: parameters, Adam's moments, random-number states.

The tensors are unsharded and in main memory, even if the parameters are sharded over processes. All processes must call
each function at the same time.
"""

import torch
from torch import Tensor, nn

from compress.core.distributed import all_values, place
from compress.distill.sharding.fsdp import copy_to_cpu, load_moments, moments, shard_like

Tensors = dict[str, Tensor]
PARAMETER, OPTIMIZER, BEST, RANDOM = "parameter", "optimizer", "best", "random"


def take_state(module: nn.Module, optimizer: torch.optim.Optimizer, best: Tensors) -> Tensors:
    """A copy of the whole state. Names: "parameter.NAME", "optimizer.KEY.NAME", "best.NAME", "random.DEVICE.RANK"."""
    tensors = finished_state(best) | take_random()
    for name, parameter in module.named_parameters():
        tensors[f"{PARAMETER}.{name}"] = copy_to_cpu(parameter.detach())
        for key, value in moments(optimizer, parameter).items():
            tensors[f"{OPTIMIZER}.{key}.{name}"] = value
    return tensors


def load_state(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Restore parameters, moments and this process's random-number state from the result of `take_state`."""
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


def finished_state(best: Tensors) -> Tensors:
    """The state of a finished stage: only its best weights, under "best.NAME"."""
    return {f"{BEST}.{name}": tensor for name, tensor in best.items()}


def best_weights(tensors: Tensors) -> Tensors:
    """The best weights of a state, under their parameter names."""
    return {name.removeprefix(f"{BEST}."): value for name, value in tensors.items() if name.startswith(f"{BEST}.")}


def take_random() -> Tensors:
    """The random-number states of all processes, under "random.DEVICE.RANK"."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    by_rank = enumerate(all_values(states))
    return {f"{RANDOM}.{device}.{rank}": state for rank, one in by_rank for device, state in one.items()}


def load_random(tensors: Tensors) -> None:
    """Restore this process's random-number states."""
    rank = place()[0]
    for device, put in (("cpu", torch.set_rng_state), ("cuda", torch.cuda.set_rng_state)):
        state = tensors.get(f"{RANDOM}.{device}.{rank}")
        if state is not None and (device == "cpu" or torch.cuda.is_available()):
            put(state)

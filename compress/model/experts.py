"""Experts as linears: transformers stacks the experts of a block in 3-D parameters, checkpoints store them one by one.

`split_experts` replaces each stacked module of a model. So the parameters have the names of files, every expert is made
of linears that can be packed, and no other code contains experts. A forward pass calls all experts in order, also those
without a token. So every micro-batch reaches the same linears in the same order.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from compress.model.families import ExpertNames, find_family


class ExpertLinear(nn.Linear):
    """A linear that may be stored in another dtype than its inputs: experts stay in 16 bits to save memory."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.to(x.dtype))


class Expert(nn.Module):
    """One MLP. Its linears have the names that files use. Without `names.gate`, it has no gate."""

    names: ExpertNames
    activation: nn.Module

    def __init__(self, names: ExpertNames, hidden: int, intermediate: int, activation: nn.Module):
        super().__init__()
        self.__dict__["names"], self.__dict__["activation"] = names, activation
        for name in names.inputs:
            self.add_module(name, ExpertLinear(hidden, intermediate, bias=False))
        self.add_module(names.down, ExpertLinear(intermediate, hidden, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        inputs: list[Tensor] = [self.get_submodule(name)(x) for name in self.names.inputs]
        gated = self.activation(inputs[0]) * inputs[1] if len(inputs) == 2 else self.activation(inputs[0])
        output: Tensor = self.get_submodule(self.names.down)(gated)
        return output


class Counts(nn.Module):
    """Returns its input, the number of tokens of each expert. A module of its own, so that hooks can watch it."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens


class SplitExperts(nn.Module):
    """The experts of a block, with the interface of transformers' stacked module.

    Experts in `sees_all` compute all tokens, so that calibration has enough of them. The output does not change: a
    token still gets the outputs of its own experts only.
    """

    def __init__(self, stacked: Any, names: ExpertNames):
        super().__init__()
        self.sees_all: frozenset[int] = frozenset()
        self.count, hidden, intermediate = stacked.down_proj.shape
        for index in range(self.count):
            self.add_module(str(index), Expert(names, hidden, intermediate, stacked.act_fn))
        self.counts = Counts()

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of the experts' outputs, for states (tokens, hidden) and (tokens, k) indices and weights."""
        chosen = [(top_k_index == index).nonzero(as_tuple=True) for index in range(self.count)]
        self.counts(torch.tensor([float(len(tokens)) for tokens, _ in chosen]))
        total = torch.zeros_like(hidden_states, dtype=top_k_weights.dtype)
        for index, (tokens, places) in enumerate(chosen):
            expert = self.get_submodule(str(index))
            output = expert(hidden_states)[tokens] if index in self.sees_all else expert(hidden_states[tokens])
            total.index_add_(0, tokens, (output * top_k_weights[tokens, places, None]).to(total.dtype))
        return total.to(hidden_states.dtype)


def split_experts(model: nn.Module, model_type: str) -> None:
    """Replace the stacked experts of a model, if the table knows their names. The weights are not copied."""
    family = find_family(model_type)
    names = family.experts if family else None
    if names is None:
        return
    for path, module in list(model.named_modules()):
        if path.endswith(f".{names.module}") and hasattr(module, "num_experts"):
            owner, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(owner), leaf, SplitExperts(module, names))

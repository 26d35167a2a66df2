"""Read gptq checkpoints in which groups are out of order as if they were in order, without changing a weight.

With `desc_act: true`, g_idx gives the group of each input.

    groups in order      an ordinary checkpoint (static_groups, act_group_aware)
    groups out of order  exact only if the inputs can be reordered. Those of down_proj can: they are the outputs of
                         gate_proj and up_proj. Any other linear is refused by name.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from compress.checkpoint.formats import FORMATS, model_dtype
from compress.checkpoint.read import Checkpoint
from compress.checkpoint.schemes import gptq_override
from compress.core import pack
from compress.core.errors import QCompressError

Change = Callable[[Tensor], Tensor]
READER, WRITERS = "down_proj", ("gate_proj", "up_proj")  # a linear, and those that compute its inputs, in order


class StandardView(Checkpoint):
    """A checkpoint of which some tensors are read in another way. `changes` maps their names to functions."""

    def __init__(self, source: Checkpoint, quantization: dict[str, object]):
        self.__dict__.update(source.__dict__)
        self.config = {**source.config, "quantization_config": quantization}
        self.changes: dict[str, list[Change]] = {}

    def change(self, name: str, function: Change) -> None:
        """Apply `function`, after earlier ones, to the tensor `name`, if the checkpoint has it."""
        if name in self.tensors:
            self.changes.setdefault(name, []).append(function)
            self.replaced = frozenset(self.changes)

    def tensor(self, name: str) -> Tensor:
        """The tensor after all changes. Raises QCompressError like `Checkpoint.tensor`."""
        tensor = super().tensor(name)
        for function in self.changes.get(name, ()):
            tensor = function(tensor)
        return tensor


def standard_view(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with all groups in order; unchanged if it is not in gptq with `desc_act`.

    Raises QCompressError with a tensor's name if the inputs of a linear cannot be reordered.
    """
    quant = checkpoint.quantization or {}
    if quant.get("quant_method") != "gptq" or quant.get("desc_act") is not True:
        return checkpoint
    view, suffix = StandardView(checkpoint, {**quant, "desc_act": False}), f".{FORMATS['gptq'].packed}"
    modules = [name.removesuffix(suffix) for name in checkpoint.tensors if name.endswith(suffix)]
    for module, order in unordered(view, modules):
        fold_order(view, module, order)
    return view


def bits_of(view: Checkpoint, module: str) -> int:
    """The bits of a packed module."""
    quant = view.quantization or {}
    settings = {**quant, **(gptq_override(quant, module) or {})}
    return FORMATS["gptq"].scheme(settings, module, model_dtype(view.config)).bits


def unordered(view: StandardView, modules: list[str]) -> Iterator[tuple[str, Tensor]]:
    """(module, order) of each module whose groups are out of order: order[i] is the input at place i of the groups.

    Raises QCompressError if the groups of a module have different sizes.
    """
    for module in modules:
        if f"{module}.g_idx" not in view.tensors:
            continue
        groups = view.tensor(f"{module}.g_idx").long()
        order = groups.argsort(stable=True)
        count = view.tensors[f"{module}.scales"].shape[0] if f"{module}.scales" in view.tensors else 0
        if not count or len(groups) % count or not torch.equal(groups[order], in_order(len(groups), count).long()):
            raise QCompressError(f"{view}: {module}.g_idx: the groups have different sizes; quantize the model again")
        if not torch.equal(order, torch.arange(len(order))):
            yield module, order


def in_order(inputs: int, groups: int) -> Tensor:
    """The group of each input if groups are in order: (inputs,) int32."""
    return torch.arange(inputs, dtype=torch.int32) // (inputs // groups)


def fold_order(view: StandardView, module: str, order: Tensor) -> None:
    """Read a module with its inputs in `order`, and the linears before it with their outputs in that order.

    Raises QCompressError with the module's name if its inputs cannot be reordered.
    """
    parent, _, leaf = module.rpartition(".")
    writers = [f"{parent}.{name}" for name in WRITERS]
    if leaf != READER or not all(has_outputs(view, writer, len(order)) for writer in writers):
        raise QCompressError(
            f"{view}: {module}: its groups are in activation order (desc_act), and its inputs cannot be reordered; "
            "quantize the model with desc_act false"
        )
    bits = bits_of(view, module)
    view.change(f"{module}.qweight", lambda words: reorder_words(words, bits, 0, order))
    view.change(f"{module}.g_idx", lambda groups: groups[order])
    for writer in writers:
        reorder_outputs(view, writer, order)


def has_outputs(view: Checkpoint, module: str, count: int) -> bool:
    """Whether a linear, packed or plain, has so many outputs."""
    weight, scales = view.tensors.get(f"{module}.weight"), view.tensors.get(f"{module}.scales")
    return (weight is not None and weight.shape[0] == count) or (scales is not None and scales.shape[-1] == count)


def reorder_outputs(view: StandardView, module: str, order: Tensor) -> None:
    """Read a linear, packed or plain, with its outputs in `order`."""
    for name in ("weight", "bias"):
        view.change(f"{module}.{name}", lambda tensor: tensor[order])
    for name in ("qweight", "scales"):
        view.change(f"{module}.{name}", lambda tensor: tensor[:, order].contiguous())
    if f"{module}.qzeros" in view.tensors:
        bits = bits_of(view, module)
        view.change(f"{module}.qzeros", lambda words: reorder_words(words, bits, 1, order))


def reorder_words(words: Tensor, bits: int, dim: int, order: Tensor) -> Tensor:
    """Packed codes or zeros in another order along `dim`."""
    return pack.pack_words(pack.unpack_words(words, bits, dim).index_select(dim, order), bits, dim)

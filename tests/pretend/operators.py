"""What the schema of an operator says, and what a GPU would refuse or wait for."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

Op = torch._ops.OpOverload

WAITING = {  # operators after which the host must wait, because it reads a value or the size of a result
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "equal",
    "repeat_interleave.Tensor", "bincount", "_linalg_check_errors",
}  # fmt: skip
MASKED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}  # wait if an index is a mask
NOT_LAUNCHED = {"view", "as_strided", "_reshape_alias", "empty", "empty_strided"}
PRODUCTS = {"mm", "bmm", "addmm", "addmm_", "addmv", "baddbmm", "mv", "dot"}
NO_HOST_SCALARS = {"mm", "bmm", "cat", "stack", "gather", "index_select", "embedding", "scatter"}
COPIES = {"_to_copy", "copy_", "copy"}


class Signature(NamedTuple):
    """The arguments of an operator by name: all, those it writes, its `out` arguments, and those that are one tensor.

    `returned` names, for each result, the argument that it is, or None for a new tensor. `view` is True if the result
    shares memory with an argument.
    """

    name: str
    overload: str
    names: tuple[str, ...]
    written: tuple[str, ...]
    outs: tuple[str, ...]
    tensors: frozenset[str]
    returned: tuple[str | None, ...]
    view: bool


@cache
def signature(op: Op) -> Signature:
    schema = op._schema
    written = [one for one in schema.arguments if one.alias_info and one.alias_info.is_write]
    labels = {next(iter(one.alias_info.before_set), one.name): one.name for one in written}
    aliases = [one.alias_info for one in schema.returns]
    shared = any(alias and not alias.is_write for alias in aliases)
    return Signature(
        schema.name.removeprefix("aten::"),
        str(op).removeprefix("aten."),
        tuple(one.name for one in schema.arguments),
        tuple(one.name for one in written),
        tuple(one.name for one in schema.arguments if one.is_out),
        frozenset(one.name for one in schema.arguments if str(one.type) == "Tensor"),
        tuple(labels[next(iter(alias.before_set))] if alias and alias.is_write else None for alias in aliases),
        shared or schema.name.startswith("aten::set_"),
    )


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value`, with `change` applied to it if it is a tensor, or to its tensors if it is a list."""
    if isinstance(value, Tensor):
        return change(value)
    return [each_tensor(one, change) for one in value] if isinstance(value, list | tuple) else value


def tensors_of(arguments: dict[str, Any]) -> Iterator[Tensor]:
    for value in arguments.values():
        yield from (one for one in (value if isinstance(value, list | tuple) else (value,)) if isinstance(one, Tensor))


def waits(spec: Signature, arguments: dict[str, Any]) -> bool:
    """Whether the host waits for the device in this call. Copies are counted elsewhere."""
    indices = (arguments.get("indices") or ()) if spec.name in MASKED else ()
    masks = any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)
    return spec.name in WAITING or spec.overload in WAITING or masks


def check_devices(spec: Signature, arguments: dict[str, Any]) -> None:
    """Raises the RuntimeError of CUDA if an operand is on the wrong device, or has a dtype without a product."""
    tensors = list(tensors_of(arguments))
    on_gpu = [one for one in tensors if one.is_cuda]
    if not on_gpu or spec.name in COPIES:
        return
    if spec.name in PRODUCTS and not (on_gpu[0].is_floating_point() or on_gpu[0].is_complex()):
        raise RuntimeError(f'"{spec.name}_cuda" not implemented for {str(on_gpu[0].dtype)!r}')
    indices = (arguments.get("indices") or ()) if spec.name in MASKED else ()
    if indices and not arguments["self"].is_cuda:
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    written = [arguments[name] for name in spec.written if name in arguments]
    for one in tensors:
        if one.is_cuda or any(one is index for index in indices):
            continue
        scalar = one.dim() == 0 and spec.name not in NO_HOST_SCALARS and not any(one is target for target in written)
        if not scalar:
            raise RuntimeError(f"{spec.overload}: Expected all tensors to be on the same device, but found cuda:0, cpu")

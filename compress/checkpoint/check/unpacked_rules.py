"""Rule T13: the unpacked tensors are those of the source checkpoint, since quantizing copies them.

The record states two exceptions. AWQ scales the norms and biases that feed a packed linear, and T14 compares those
factors. Tuning trains the norms and biases of the blocks. torch is imported only if two tensors have unequal bytes.
"""

from typing import TYPE_CHECKING

import numpy as np

from compress.checkpoint.arrays import read_data
from compress.checkpoint.check.candidate import Candidate, Findings, error
from compress.checkpoint.read import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

OTHER_WEIGHTS = "vLLM loads it and computes with other weights than the source (no error)"
TUNED_FACTOR = (0.5, 2.0)  # of a trained norm or bias


def tensors_match_source(candidate: Candidate) -> Findings:
    """T13: unpacked tensors equal those of the source, in the dtype in which they are stored."""
    source = candidate.compared_source
    if source is None:
        return
    names = candidate.table.parameters.keys() & candidate.checkpoint.tensors.keys()
    for name in sorted(names | (candidate.checkpoint.tensors.keys() & source.tensors.keys())):
        module, _, suffix = name.rpartition(".")
        original = f"{candidate.source_name(module)}.{suffix}"
        if original in source.tensors:
            yield from tensor_difference(candidate, name, source, original)
        elif name in candidate.table.parameters:
            yield error("present", "absent, as in the source", OTHER_WEIGHTS, tensor=name)


def tensor_difference(candidate: Candidate, name: str, source: Checkpoint, original: str) -> Findings:
    """A finding if the tensor `name` differs from `original` in the source and the record does not explain it."""
    ours, theirs = candidate.checkpoint.tensors[name], source.tensors[original]
    if ours.shape != theirs.shape:
        yield error(list(ours.shape), f"{list(theirs.shape)}, as in the source", OTHER_WEIGHTS, tensor=name)
        return
    if ours.dtype == theirs.dtype and np.array_equal(read_data(name, ours), read_data(original, theirs)):
        return
    stored, expected = candidate.checkpoint.tensor(name), source.tensor(original)
    if equal_as_stored(stored, expected) or name in candidate.provenance.scaled_parameters:
        return
    if not stored.is_floating_point() or not candidate.provenance.is_tuned(name):
        yield error(difference(stored, expected), "the numbers of the source", OTHER_WEIGHTS, tensor=name)
        return
    factors = strong_factors(stored.float(), expected.float())
    low, high = factors.min().item(), factors.max().item()
    if low < TUNED_FACTOR[0] or high > TUNED_FACTOR[1]:
        allowed = f"{TUNED_FACTOR[0]:g} to {TUNED_FACTOR[1]:g} times the source, after tuning"
        yield error(f"{low:.2f} to {high:.2f} times the source", allowed, OTHER_WEIGHTS, tensor=name)


def equal_as_stored(stored: "Tensor", source: "Tensor") -> bool:
    """Whether a tensor is its source, rounded to the dtype in which it is stored."""
    return stored.equal(source.to(stored.dtype))


def strong_factors(stored: "Tensor", source: "Tensor") -> "Tensor":
    """The factors stored / source, without those of numbers far below the mean; [1] if no number remains."""
    strong = source.abs() > 0.1 * source.abs().mean()
    return stored[strong] / source[strong] if strong.any() else stored.new_ones(1)


def difference(stored: "Tensor", source: "Tensor") -> str:
    """How a tensor differs from its source, in words."""
    ours, theirs = stored.float().flatten(), source.float().flatten()
    changed = int((ours != source.to(stored.dtype).float().flatten()).sum())
    energy = theirs.square().sum()
    factor = f", {(ours * theirs).sum() / energy:.3g} times the source" if energy > 0 else ""
    return f"{changed} of {ours.numel()} numbers differ{factor}"

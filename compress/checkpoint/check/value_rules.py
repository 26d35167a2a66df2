"""Rules T5, T7 and T10: the values inside the tensors.

Every rule is a generator: it takes a Candidate and yields its findings.
"""

import torch
from torch import Tensor

from calibration.statistics import all_finite
from compress.checkpoint.check.candidate import Candidate, Findings, error, warning
from compress.checkpoint.formats import quantized_as
from compress.core.grid import SMALLEST_SCALE, QuantizedWeight, split_groups

LARGEST_SCALE = 65504.0
POSITIVE, NOT_ZERO = "more than 0", "not 0"
GPTQ_ZEROS = {4: 0x77777777, 8: 0x7F7F7F7F}  # every zero 8 (128), stored as zero - 1


def gptq_order(candidate: Candidate) -> Findings:
    """T5: in a GPTQ checkpoint, every zero is the middle code, and the columns are in order. vLLM assumes both."""
    if not candidate.format or candidate.format.name != "gptq":
        return
    for name, matrix, scheme in candidate.sound():
        zeros, middle = candidate.checkpoint.tensor(f"{name}.qzeros"), GPTQ_ZEROS[scheme.bits]
        if (zeros != middle).any():
            place = (zeros != middle).nonzero()[0].tolist()
            value = f"{int(zeros[tuple(place)]) & 0xFFFFFFFF:#010x} at {place}"
            silent = "vLLM uses the middle code for every zero; other loaders use this one (no error)"
            yield error(value, f"{middle:#010x}", silent, tensor=f"{name}.qzeros")
        groups = candidate.checkpoint.tensor(f"{name}.g_idx")
        ordered = torch.arange(matrix.inn, dtype=torch.int32) // scheme.group_size
        if not torch.equal(groups, ordered):
            column = int((groups != ordered).nonzero()[0])
            silent = "vLLM ignores g_idx and keeps the columns in order; other loaders follow it (no error)"
            value, expected = f"{groups[column].item()} at {column}", ordered[column].item()
            yield error(value, expected, silent, tensor=f"{name}.g_idx")


def valid_scales(candidate: Candidate) -> Findings:
    """T7: scales are finite, not 0, and normal numbers in float16 and bfloat16 alike.

    Scales of a symmetric grid may be negative. A scale of 0 is allowed if every code of its group equals the zero.
    """
    for name, _, scheme in candidate.sound():
        path = next(f"{name}.{suffix}" for suffix in ("scales", "weight_scale") if suffix in candidate.packed[name])
        scales = candidate.checkpoint.tensor(path).float()
        for expected, bad in bad_scales(scales, scheme.sym).items():
            if expected in (POSITIVE, NOT_ZERO) and (scales == 0).any():
                dead = dead_groups(quantized_as(candidate.checkpoint, name, scheme))
                bad &= ~(dead.T if path.endswith(".scales") else dead)
            if bad.any():
                place = bad.nonzero()[0].tolist()
                noise = "vLLM multiplies by it and generates noise (no error)"
                yield error(f"{scales[tuple(place)].item():g} at {place}", expected, noise, tensor=path)
        tiny = (scales != 0) & (scales.abs() < SMALLEST_SCALE)
        if tiny.any():
            lost = "float16 kernels lose its last bits, or treat it as 0"
            yield warning(scales[tiny].abs().min().item(), f"at least {SMALLEST_SCALE:.3g}", lost, tensor=path)


def bad_scales(scales: Tensor, sym: bool) -> dict[str, Tensor]:
    """{text of the expected value: mask of the scales that violate it}."""
    return {
        "a finite number": ~torch.isfinite(scales),
        NOT_ZERO if sym else POSITIVE: scales == 0 if sym else scales <= 0,
        f"less than {LARGEST_SCALE:g}": torch.isfinite(scales) & (scales.abs() >= LARGEST_SCALE),
    }


def dead_groups(weight: QuantizedWeight) -> Tensor:
    """(out, groups) mask of groups whose codes all equal the zero, so that any scale gives 0."""
    return (split_groups(weight.codes, weight.group_size) == weight.zeros[..., None]).all(-1)


def finite_parameters(candidate: Candidate) -> Findings:
    """T10: unpacked parameters are finite, and no matrix or norm is all zeros."""
    for name, info in candidate.checkpoint.tensors.items():
        module, _, suffix = name.rpartition(".")
        if not info.dtype.is_floating_point or module in candidate.packed or not info.bytes:
            continue
        tensor = candidate.checkpoint.tensor(name)
        if not all_finite(tensor):
            yield error("NaN or infinite", "finite numbers", "vLLM repeats one token", tensor=name)
        elif suffix == "weight" and not tensor.any():
            yield warning(
                "all zeros", "trained numbers", "vLLM loads it, but it was probably never written", tensor=name
            )

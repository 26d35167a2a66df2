"""Rules T5, T7 and T10: the values inside the tensors.

Every rule is a generator: it takes a Candidate and yields its findings.
"""

import numpy as np
from numpy.typing import NDArray

from compress.checkpoint.arrays import Array, all_finite, all_zero, read_array
from compress.checkpoint.check.candidate import Candidate, Findings, error, warning
from compress.checkpoint.check.group_sums import group_sums
from compress.checkpoint.schemes import V2, stored_layout
from compress.core.scheme import SMALLEST_SCALE, Scheme

LARGEST_SCALE = 65504.0
POSITIVE, NOT_ZERO = "more than 0", "not 0"
GPTQ_ZEROS: dict[str | None, dict[int, int]] = {  # every zero 8 (128), stored as zero - 1, or in gptq_v2 as it is
    None: {4: 0x77777777, 8: 0x7F7F7F7F},
    V2: {4: 0x88888888 - 2**32, 8: 0x80808080 - 2**32},
}


def gptq_order(candidate: Candidate) -> Findings:
    """T5: in a GPTQ checkpoint, every zero is the middle code, and the columns are in order. vLLM assumes both."""
    if not candidate.format or candidate.format.name != "gptq":
        return
    for name, matrix, scheme in candidate.sound():
        zeros = read_array(candidate.checkpoint, f"{name}.qzeros")
        middle = GPTQ_ZEROS[stored_layout(candidate.quant)][scheme.bits]
        if (zeros != middle).any():
            place = first_place(zeros != middle)
            value = f"{int(zeros[tuple(place)]) & 0xFFFFFFFF:#010x} at {place}"
            silent = "vLLM uses the middle code for every zero; other loaders use this one (no error)"
            yield error(value, f"{middle & 0xFFFFFFFF:#010x}", silent, tensor=f"{name}.qzeros")
        groups = read_array(candidate.checkpoint, f"{name}.g_idx")
        ordered = np.arange(matrix.inn, dtype=np.int32) // scheme.group_size
        if not np.array_equal(groups, ordered):
            (column,) = first_place(groups != ordered)
            silent = "vLLM ignores g_idx and keeps the columns in order; other loaders follow it (no error)"
            value, expected = f"{groups[column]} at {column}", int(ordered[column])
            yield error(value, expected, silent, tensor=f"{name}.g_idx")


def first_place(mask: NDArray[np.bool_]) -> list[int]:
    """The indices of the first value that is True."""
    return [int(index) for index in np.argwhere(mask)[0]]


def valid_scales(candidate: Candidate) -> Findings:
    """T7: scales are finite, not 0, and normal numbers in float16 and bfloat16 alike.

    Scales of a symmetric grid may be negative, also if an asymmetric layout stores it. A scale of 0 is allowed if every
    code of its group equals the zero.
    """
    for name, _, scheme in candidate.sound():
        assert candidate.format is not None
        path, scales = candidate.scales_path(name), candidate.scales(name)
        layout = stored_layout(candidate.quant) or candidate.format.name
        sym = scheme.sym or (bool((scales < 0).any()) and has_middle_zeros(candidate, name, layout, scheme))
        for expected, bad in bad_scales(scales, sym).items():
            if expected in (POSITIVE, NOT_ZERO) and (scales == 0).any():
                dead = group_sums(candidate.reader(name), layout, scheme).dead
                bad &= ~(dead.T if path.endswith(".scales") else dead)
            if bad.any():
                place = first_place(bad)
                noise = "vLLM multiplies by it and generates noise (no error)"
                yield error(f"{scales[tuple(place)]:g} at {place}", expected, noise, tensor=path)
        tiny = (scales != 0) & (np.abs(scales) < SMALLEST_SCALE)
        if tiny.any():
            lost = "float16 kernels lose its last bits, or treat it as 0"
            yield warning(float(np.abs(scales[tiny]).min()), f"at least {SMALLEST_SCALE:.3g}", lost, tensor=path)


def has_middle_zeros(candidate: Candidate, name: str, layout: str, scheme: Scheme) -> bool:
    """Whether every zero of a packed module is the middle code."""
    return bool((group_sums(candidate.reader(name), layout, scheme).zeros == 2 ** (scheme.bits - 1)).all())


def bad_scales(scales: Array, sym: bool) -> dict[str, NDArray[np.bool_]]:
    """{text of the expected value: mask of the scales that violate it}."""
    return {
        "a finite number": ~np.isfinite(scales),
        NOT_ZERO if sym else POSITIVE: scales == 0 if sym else scales <= 0,
        f"less than {LARGEST_SCALE:g}": np.isfinite(scales) & (np.abs(scales) >= LARGEST_SCALE),
    }


def finite_parameters(candidate: Candidate) -> Findings:
    """T10: unpacked parameters are finite, and no matrix or norm is all zeros."""
    for name, info in candidate.checkpoint.tensors.items():
        module, _, suffix = name.rpartition(".")
        if not info.dtype.is_floating_point or module in candidate.packed or not info.bytes:
            continue
        if not all_finite(name, info):
            yield error("NaN or infinite", "finite numbers", "vLLM repeats one token", tensor=name)
        elif suffix == "weight" and all_zero(name, info):
            yield warning(
                "all zeros", "trained numbers", "vLLM loads it, but it was probably never written", tensor=name
            )

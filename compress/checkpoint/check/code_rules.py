"""Rule T12 without a source: codes look like trained weights. `fidelity_rules.py` compares them with a source.

Only properties of all trained weights are checked: weights lie near 0, and the zeros of asymmetric groups correlate
with their codes (≥ 0.91, and 0 if codes or zeros are permuted). At most OUTPUTS random outputs of a weight are read,
since a wrong layout affects all outputs.
"""

from collections.abc import Iterator

import numpy as np

from compress.checkpoint.check.candidate import Candidate, Finding, Findings, error
from compress.checkpoint.check.group_sums import Columns, GroupSums, group_sums
from compress.checkpoint.schemes import stored_layout

OUTPUTS = 1024
LEAST_CORRELATION, MOST_OFFSET, MOST_SPREAD = 0.5, 0.75, 5.0
ENOUGH_GROUPS, VARYING = 64, 0.3
NOISE = "vLLM loads it and generates noise (no error)"


def plausible_codes(candidate: Candidate) -> Findings:
    """T12: packed weights look like trained weights."""
    if candidate.format is None:
        return
    for name, matrix, scheme in candidate.sound():
        if not np.isfinite(candidate.scales(name)).all():
            continue  # T7
        columns = sample(matrix.out // (32 // scheme.bits), OUTPUTS * scheme.bits // 32)
        layout = stored_layout(candidate.quant) or candidate.format.name
        sums = group_sums(candidate.reader(name), layout, scheme, columns)
        tensor = f"{name}.{candidate.format.packed}"
        yield from (finding | {"tensor": tensor} for finding in implausible_codes(sums))


def sample(count: int, most: int) -> Columns:
    """The indices of at most `most` out of `count` words, in order, the same every time."""
    return slice(None) if count <= most else np.sort(np.random.default_rng(0).permutation(count)[:most])


def implausible_codes(sums: GroupSums) -> Iterator[Finding]:
    """Findings from codes and zeros alone, without a source."""
    unit, count = 2 ** (sums.bits - 4), sums.codes.size * sums.size
    mean = (sums.codes.sum() - sums.size * sums.zeros.sum()) / count / unit
    spread = sums.distances.sum() / count / unit
    if abs(mean) > MOST_OFFSET:
        yield error(f"codes are {mean:.2f} above their zeros on average", f"within {MOST_OFFSET} of 0", NOISE)
    if spread > MOST_SPREAD:
        yield error(f"codes are {spread:.2f} from their zeros on average", f"at most {MOST_SPREAD}", NOISE)
    zeros, codes = sums.zeros.flatten(), sums.codes.flatten() / sums.size
    varying = len(zeros) >= ENOUGH_GROUPS and zeros.std(ddof=1) > VARYING * unit and codes.std() > 0
    if not sums.sym and varying:
        correlation = np.corrcoef(zeros, codes)[0, 1]
        if correlation < LEAST_CORRELATION:
            expected = f"at least {LEAST_CORRELATION}; less if codes or zeros are permuted"
            yield error(f"correlation {correlation:.2f} between zeros and codes", expected, NOISE)

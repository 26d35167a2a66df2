"""Predict the KL that `qcompress verify` will find, from the KL of plainly rounding a layout.

Each method leaves a usual share of plain rounding's KL of the linears. A packed head or embedding is rounded in the
same way by every method, so its KL has the share of rtn. `scripts/plan_prediction.py` fits the shares on real models
and writes docs/results/data/plan-prediction.json. FACTOR bounds 95 % of the errors on a model that was not in the fit.
"""

from collections.abc import Mapping
from typing import NamedTuple

SHARES = {"rtn": 0.70, "gptq": 0.17, "awq": 0.23, "awq+gptq": 0.19}
FACTOR = 1.7


class RoundingKl(NamedTuple):
    """KL of plain rounding, in nats per token: that of the linears, and what a packed head and embedding add."""

    linears: float
    tables: float


def predict_kl(rounding: RoundingKl, shares: Mapping[str, float] = SHARES) -> dict[str, float]:
    """The predicted KL by method, in nats per token. `shares` has that of rtn."""
    return {method: share * rounding.linears + shares["rtn"] * rounding.tables for method, share in shares.items()}

"""Limits that a candidate has to keep, and the verdicts that follow: what gates, reports and recipes say in common.

A limit has the name of its option: `max_size` (bytes), `max_kl` (nats), `max_perplexity_ratio`, `min_retention` (% of
every kind). A limit of None always holds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Limits = Mapping[str, float | None]
HIGHEST = {"max_kl": "kl", "max_perplexity_ratio": "perplexity_ratio"}


def judge_rows(candidates: Sequence[Row], retention: Sequence[Row], limits: Limits) -> list[Row]:
    """A verdict {"name", "passed", "reason"} for every row of a candidate, [] where there is no limit at all.

    `retention` are rows of `retention_rows`; they are matched by the checkpoint's digest.
    """
    if all(limit is None for limit in limits.values()):
        return []
    verdicts = []
    for row in candidates:
        kept = [found for found in retention if found["digest"] == row["digest"] and found["role"] == "candidate"]
        reasons = [*broken_limits(row, limits), *lost_kinds(kept, limits.get("min_retention"))]
        verdicts.append({"name": row["name"], "passed": not reasons, "reason": "; ".join(reasons) or None})
    return verdicts


def broken_limits(row: Row, limits: Limits) -> list[str]:
    """The limits on size and drift that a comparison's row does not keep, in words. NaN keeps none."""
    reasons = []
    if (size := limits.get("max_size")) is not None and row["bytes"] > size:
        reasons.append(f"{row['bytes']:,} bytes are {row['bytes'] - size:,.0f} above the budget of {size:,.0f}")
    for name, key in HIGHEST.items():
        limit = limits.get(name)
        if limit is not None and not row[key] <= limit:
            reasons.append(f"{key} {row[key]:.4g} is above the limit {limit:g}")
    return reasons


def lost_kinds(kept: Sequence[Row], least: float | None) -> list[str]:
    """The kinds of task of which less than `least` % is kept, in words; also where none could be judged."""
    if least is None:
        return []
    known = [row for row in kept if row["kind"] != "all" and row["retention"] is not None]
    if not known:
        return ["no kind of task was judged"]
    lost = [f"{row['kind']} keeps {row['retention']:.1f} %" for row in known if row["retention"] < least]
    return [f"{', '.join(lost)}, less than {least:g} %"] if lost else []

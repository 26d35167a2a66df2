"""Limits that a candidate has to keep, and the verdicts that follow: what gates, reports and recipes say in common.

A limit has the name of its option: `max_size` (bytes), `max_kl` (nats), `max_perplexity_ratio`, `min_retention` (% of
every kind). A limit of None always holds. Where blocks were located, one that stands out is a limit of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Limits = Mapping[str, float | None]
HIGHEST = {"max_kl": "kl", "max_perplexity_ratio": "perplexity_ratio"}


def judge_rows(candidates: Sequence[Row], retention: Sequence[Row], limits: Limits) -> list[Row]:
    """A verdict {"name", "passed", "reason"} for every candidate's row that there is something to judge by.

    That is a limit that is not None, or the row's `blocks`. `retention` are rows of `retention_rows`; they are matched
    by the checkpoint's digest.
    """
    limited = any(limit is not None for limit in limits.values())
    verdicts = []
    for row in candidates:
        if not limited and not row.get("blocks"):
            continue
        kept = [found for found in retention if found["digest"] == row["digest"] and found["role"] == "candidate"]
        reasons = [*broken_limits(row, limits), *lost_kinds(kept, limits.get("min_retention"))]
        verdicts.append({"name": row["name"], "passed": not reasons, "reason": "; ".join(reasons) or None})
    return verdicts


def broken_limits(row: Row, limits: Limits) -> list[str]:
    """What a comparison's row does not keep, in words: blocks first, then size and drift. NaN keeps no limit."""
    reasons = [damage] if (damage := told_blocks(row)) else []
    if (size := limits.get("max_size")) is not None and row["bytes"] > size:
        reasons.append(f"{row['bytes']:,} bytes are {row['bytes'] - size:,.0f} above the budget of {size:,.0f}")
    for name, key in HIGHEST.items():
        limit = limits.get(name)
        if limit is not None and not row[key] <= limit:
            reasons.append(f"{key} {row[key]:.4g} is above the limit {limit:g}")
    return reasons


def standing_out(row: Row) -> list[Row]:
    """The blocks of a candidate that depart otherwise than its others do, the furthest first."""
    return sorted((block for block in row.get("blocks") or () if block["outlier"]), key=lambda block: -block["score"])


def told_blocks(row: Row) -> str:
    """The blocks that stand out in words, "" where none does."""
    found = [told_block(block) for block in standing_out(row)]
    if not found:
        return ""
    return f"block {found[0]} stands out" if len(found) == 1 else f"blocks {', '.join(found)} stand out"


def told_block(block: Row) -> str:
    """Number, gain and error of a block, or of the linear in it that alone stands out."""
    name = block.get("linear")
    part = next((linear for linear in block.get("linears") or () if linear["name"] == name), block)
    where = f"{block['block']} {name}" if name else str(block["block"])
    return f"{where} (gain {part['gain']:.3f}, error {part['error']:.4f})"


def lost_kinds(kept: Sequence[Row], least: float | None) -> list[str]:
    """The kinds of task of which less than `least` % is kept, in words; also where none could be judged."""
    if least is None:
        return []
    known = [row for row in kept if row["kind"] != "all" and row["retention"] is not None]
    if not known:
        return ["no kind of task was judged"]
    lost = [f"{row['kind']} keeps {row['retention']:.1f} %" for row in known if row["retention"] < least]
    return [f"{', '.join(lost)}, less than {least:g} %"] if lost else []

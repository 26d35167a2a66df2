"""Limits on a candidate, and the verdicts that follow. Gates, reports and recipes share them.

A limit has the name of its option: `max_size` (bytes), `max_kl` (nats per token), `max_perplexity_ratio`, and
`min_retention` (% on every kind of task). None means no limit. A block that --locate marks as an outlier always fails.
"""

from collections.abc import Mapping, Sequence

from compress.core.errors import GateFailure
from compress.core.rows import BlockRow, CompareRow, RetentionRow, VerdictRow

Limits = Mapping[str, float | None]
HELP_DRIFT = "try another method, a smaller group size or more calibration text; `qcompress plan` lists the options"
HELP_DAMAGE = "the weights are damaged: quantize or download the checkpoint again"


def make_verdicts(
    candidates: Sequence[CompareRow], retention: Sequence[RetentionRow], limits: Limits
) -> list[VerdictRow]:
    """A verdict for every candidate that has a limit or located blocks. Retention is matched by digest."""
    limited = any(limit is not None for limit in limits.values())
    verdicts: list[VerdictRow] = []
    for row in candidates:
        if not limited and not row.get("blocks"):
            continue
        tasks = [task for task in retention if task["digest"] == row["digest"] and task["role"] == "candidate"]
        reasons = [*broken_limits(row, limits), *low_retention(tasks, limits.get("min_retention"))]
        verdicts.append({"name": row["name"], "passed": not reasons, "reason": "; ".join(reasons) or None})
    return verdicts


def add_verdicts(rows: Sequence[CompareRow], verdicts: Sequence[VerdictRow]) -> list[CompareRow]:
    """The rows, with `passed` and `reason` added from their verdicts. Rows without a verdict are unchanged."""
    by_name = {verdict["name"]: verdict for verdict in verdicts}
    return [add_verdict(row, by_name.get(row["name"])) for row in rows]


def add_verdict(row: CompareRow, verdict: VerdictRow | None) -> CompareRow:
    if verdict is None:
        return row
    return {**row, "passed": verdict["passed"], "reason": verdict["reason"]}


def check_verdicts(rows: Sequence[CompareRow]) -> None:
    """Raise GateFailure if a candidate failed; it names every such candidate, the reason and what to do."""
    failed = [row for row in rows if not row.get("passed", True)]
    if failed:
        lines = [f"{row['name']}: {row['reason']}; {HELP_DAMAGE if outliers(row) else HELP_DRIFT}" for row in failed]
        raise GateFailure("; ".join(lines))


def broken_limits(row: CompareRow, limits: Limits) -> list[str]:
    """Every limit that a row breaks, in words: blocks, size, drift. NaN breaks every limit."""
    reasons = [blocks] if (blocks := format_outliers(row)) else []
    if (size := limits.get("max_size")) is not None and row["bytes"] > size:
        reasons.append(f"{row['bytes']:,} bytes exceed --max-size by {row['bytes'] - size:,.0f}")
    if (limit := limits.get("max_kl")) is not None and not row["kl"] <= limit:
        reasons.append(f"KL {row['kl']:.4g} nats is above the limit {limit:g}")
    if (limit := limits.get("max_perplexity_ratio")) is not None and not row["perplexity_ratio"] <= limit:
        reasons.append(f"perplexity ratio {row['perplexity_ratio']:.4g} is above the limit {limit:g}")
    return reasons


def outliers(row: CompareRow) -> list[BlockRow]:
    """The outlier blocks of a candidate, the largest score first."""
    return sorted((block for block in row.get("blocks") or () if block["outlier"]), key=lambda block: -block["score"])


def format_outliers(row: CompareRow) -> str:
    """The outlier blocks in words; "" if there are none."""
    blocks = [format_block(block) for block in outliers(row)]
    if not blocks:
        return ""
    return f"block {blocks[0]} is an outlier" if len(blocks) == 1 else f"blocks {', '.join(blocks)} are outliers"


def format_block(block: BlockRow) -> str:
    """Number, gain and error of a block, or of its only outlier linear."""
    name = block.get("linear")
    linear = next((linear for linear in block.get("linears") or () if linear["name"] == name), None)
    gain, error = (block["gain"], block["error"]) if linear is None else (linear["gain"], linear["error"])
    place = f"{block['block']} {name}" if name else str(block["block"])
    return f"{place} (gain {gain:.3f}, error {error:.4f})"


def low_retention(tasks: Sequence[RetentionRow], minimum: float | None) -> list[str]:
    """The kinds of task with less than `minimum` % retention, in words, or that no kind has a retention."""
    if minimum is None:
        return []
    kinds = {row["kind"]: row["retention"] for row in tasks if row["kind"] != "all"}
    scored = {kind: retention for kind, retention in kinds.items() if retention is not None}
    if not scored:
        return ["no kind of task has a retention"]
    low = [f"{kind} retains {retention:.1f} %" for kind, retention in scored.items() if retention < minimum]
    return [f"{', '.join(low)}, less than {minimum:g} %"] if low else []

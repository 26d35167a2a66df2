"""Limits on a candidate, and the resulting verdicts. Commands, reports and recipes share them.

Each limit is named after its option: `max_size` (bytes), `max_kl` (nats per token), `max_perplexity_ratio`, and
`min_retention` (% on every kind of task). A limit of None is not checked. If --locate marks a block as an outlier, the
candidate always fails.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from compress.core.errors import GateFailure
from compress.core.proportion import ENOUGH
from compress.core.rows import BlockRow, CompareRow, RetentionRow, VerdictRow
from compress.core.units import format_bytes

Limits = Mapping[str, float | None]
HELP_DRIFT = "try another method, a smaller group size or more calibration text; `qcompress plan` lists the options"
HELP_SIZE = (
    "try larger groups, fewer bits for the head, or a smaller model; `qcompress plan --max-size` lists what fits"
)
HELP_BOTH = "smaller groups lower the KL but need more bytes: try another method, --tune, or a smaller model"
HELP_DAMAGE = "the weights are damaged: quantize or download the checkpoint again"


def make_verdicts(
    candidates: Sequence[CompareRow], retention: Sequence[RetentionRow], limits: Limits
) -> list[VerdictRow]:
    """One verdict for each candidate that has a limit or located blocks. Retention rows are matched by digest."""
    limited = any(limit is not None for limit in limits.values())
    verdicts: list[VerdictRow] = []
    for row in candidates:
        if not limited and not row.get("blocks"):
            continue
        tasks = [task for task in retention if task["digest"] == row["digest"] and task["role"] == "candidate"]
        reasons = [*broken_limits(row, limits), *low_retention(tasks, limits.get("min_retention"))]
        verdict: VerdictRow = {"name": row["name"], "passed": not reasons, "reason": "; ".join(reasons) or None}
        if reasons:
            verdict["cure"] = cure(row, limits)
        if unsure := few_tasks(tasks, limits.get("min_retention")):
            verdict["unsure"] = unsure
        verdicts.append(verdict)
    return verdicts


def cure(row: CompareRow, limits: Limits) -> str:
    """Advice for the limits that a row breaks, as the end of an error line.

    Smaller groups lower the drift but make files larger, so with the limit `max_size` the advice is another one.
    """
    if outliers(row):
        return HELP_DAMAGE
    large = exceeds(row["bytes"], limits.get("max_size"))
    drifted = any(exceeds(row[key], limits.get(f"max_{key}")) for key in ("kl", "perplexity_ratio"))
    if large and not drifted:
        return HELP_SIZE
    return HELP_DRIFT if limits.get("max_size") is None else HELP_BOTH


def exceeds(value: float, limit: float | None) -> bool:
    """Whether a value is above a limit. NaN is above every limit. No value is above a limit of None."""
    return limit is not None and not value <= limit


def add_verdicts(rows: Sequence[CompareRow], verdicts: Sequence[VerdictRow]) -> list[CompareRow]:
    """The rows, with `passed` and `reason` added from the verdicts. Rows without a verdict are unchanged."""
    by_name = {verdict["name"]: verdict for verdict in verdicts}
    return [add_verdict(row, by_name.get(row["name"])) for row in rows]


def add_verdict(row: CompareRow, verdict: VerdictRow | None) -> CompareRow:
    if verdict is None:
        return row
    more: CompareRow = {**row, "passed": verdict["passed"], "reason": verdict["reason"]}
    if "cure" in verdict:
        more["cure"] = verdict["cure"]
    if "unsure" in verdict:
        more["unsure"] = verdict["unsure"]
    return more


def check_verdicts(rows: Sequence[CompareRow]) -> None:
    """Raises GateFailure if a candidate failed. The error names each failed candidate, the reason and a cure."""
    failed = [row for row in rows if not row.get("passed", True)]
    if failed:
        lines = [f"{row['name']}: {row['reason']}; {row['cure']}" for row in failed]
        raise GateFailure("; ".join(lines))


def broken_limits(row: CompareRow, limits: Limits) -> list[str]:
    """The limits that a row breaks, in words. NaN breaks every limit."""
    reasons = [blocks] if (blocks := format_outliers(row)) else []
    if exceeds(row["bytes"], size := limits.get("max_size")):
        texts = [format_bytes(count) for count in (row["bytes"], size or 0, row["bytes"] - (size or 0))]
        reasons.append(f"size {texts[0]} is above the limit {texts[1]} (max_size) by {texts[2]}")
    if exceeds(row["kl"], limit := limits.get("max_kl")):
        reasons.append(f"KL {row['kl']:.4g} nats is above the limit {limit:g} (max_kl)")
    if exceeds(row["perplexity_ratio"], limit := limits.get("max_perplexity_ratio")):
        reasons.append(
            f"perplexity ratio {row['perplexity_ratio']:.4g} is above the limit {limit:g} (max_perplexity_ratio)"
        )
    return reasons


def outliers(row: CompareRow) -> list[BlockRow]:
    """The outlier blocks of a candidate. The largest score comes first."""
    return sorted((block for block in row.get("blocks") or () if block["outlier"]), key=lambda block: -block["score"])


def format_outliers(row: CompareRow) -> str:
    """The outlier blocks in words, or "" if no block is an outlier."""
    blocks = [format_block(block) for block in outliers(row)]
    if not blocks:
        return ""
    return f"block {blocks[0]} is an outlier" if len(blocks) == 1 else f"blocks {', '.join(blocks)} are outliers"


def format_block(block: BlockRow) -> str:
    """A block's number, gain and error as text.

    If exactly one linear of the block is an outlier, the text has the linear's name, gain and error.
    """
    name = block.get("linear")
    linear = next((linear for linear in block.get("linears") or () if linear["name"] == name), None)
    gain, error = (block["gain"], block["error"]) if linear is None else (linear["gain"], linear["error"])
    place = f"{block['block']} {name}" if name else str(block["block"])
    return f"{place} (gain {gain:.3f}, error {error:.4f})"


def low_retention(tasks: Sequence[RetentionRow], minimum: float | None) -> list[str]:
    """The kinds of task with a retention below `minimum` %, in words.

    If no kind has a retention, the only entry states that.
    """
    if minimum is None:
        return []
    kinds = {row["kind"]: row["retention"] for row in tasks if row["kind"] != "all"}
    scored = {kind: retention for kind, retention in kinds.items() if retention is not None}
    if not scored:
        return ["no kind of task has a retention"]
    low = [format_retention(row) for row in tasks if row["kind"] in scored and scored[row["kind"]] < minimum]
    return [f"{', '.join(low)}, less than {minimum:g} % (min_retention)"] if low else []


def format_retention(row: Mapping[str, Any]) -> str:
    """The retention of a kind of task in words, with the number of tasks: "qa retains 84.9 % on 60 tasks"."""
    few = ", too few to tell" if row["items"] < ENOUGH else ""
    return f"{row['kind']} retains {row['retention']:.1f} % on {row['items']} task{'s' * (row['items'] != 1)}{few}"


def few_tasks(tasks: Sequence[RetentionRow], minimum: float | None) -> str | None:
    """The kinds of task that have too few tasks for a verdict on retention, in words, or None if there are none."""
    few = [row for row in tasks if row["kind"] != "all" and row["retention"] is not None and row["items"] < ENOUGH]
    if minimum is None or not few:
        return None
    counts = [f"{row['kind']} {row['items']}" for row in few]
    return f"too few tasks to tell: {', '.join(counts)}"

"""Has a checkpoint got worse since a baseline? Both are compared on the same tasks and the same text.

Scores are paired by item, KL and nll by document. A result got worse if the whole 95 % interval of its change is on the
worse side of 0. Fewer than ENOUGH items are too few for such an interval.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from compress.core.errors import QCompressError
from compress.core.proportion import ENOUGH, difference_interval, mean_interval
from compress.core.rows import ChangeRow
from compress.evaluate.drift.interval import sums_interval
from compress.evaluate.history.baseline import Baseline
from compress.evaluate.tasks.item import ALL, Item
from compress.evaluate.tasks.retention import paired
from compress.evaluate.tasks.runner import Scores, values
from compress.evaluate.tasks.suite import Suite

Row = Mapping[str, Any]
Values = NDArray[np.float64]
Pair = tuple[float | None, float | None]
NOISE = {"kl": 1e-4, "perplexity": 0.05}  # nats, %: changes that another processor or torch version can cause


def baseline_items(baseline: Baseline, suite: Suite) -> list[Item]:
    """The items that the baseline scored. Raises QCompressError, with both digests, if the suite has changed."""
    first = baseline.first_row
    if first.get("suite_digest") is None:
        raise QCompressError(
            f"{baseline.tag}: the baseline has scores of {first['suite']}, which watch cannot repeat; store a baseline "
            "with qcompress eval --tag, without --tasks"
        )
    if first["suite_digest"] != suite.digest:
        raise QCompressError(
            f"{baseline.tag}: the baseline used suite {first['suite']} ({first['suite_digest']}), this run uses "
            f"{suite.name} ({suite.digest}); pass the baseline's suite with --suite, or store a new baseline"
        )
    items = {item.id: item for item in suite.items}
    return [items[item] for row in baseline.tasks.values() for item in row["scores"]]


def check_same(baseline: Baseline, **now: Any) -> None:
    """Raises QCompressError, with the first difference, if a value of `now` differs from the baseline's."""
    for key, value in now.items():
        before = baseline.reference if key == "reference" else (baseline.drift or {}).get(key)
        if before is not None and before != value:
            raise QCompressError(
                f"{baseline.tag}: the baseline has {key} {before}, this run has {value}; store a new baseline"
            )


def task_changes(baseline: Baseline, scores: Scores, *, max_drop: float | None = None) -> list[ChangeRow]:
    """One row per kind of task, and one for the mean of the kinds.

    A drop of more than `max_drop` points counts as a fall even if it is not significant.
    """
    now = values(scores)
    rows: list[ChangeRow] = []
    for kind, row in baseline.tasks.items():
        before, after = (one.tolist() for one in paired(list(row["scores"].values()), now[kind]))
        pair = (100 * float(np.mean(before)), 100 * float(np.mean(after))) if before else (None, None)
        low, high = difference_interval(before, after) if before else (None, None)
        interval = (None, None) if low is None or high is None else (100 * low, 100 * high)
        rows.append(task_row(baseline.name, kind, len(before), pair, interval, max_drop))
    mean = mean_change(baseline.name, rows, max_drop)
    return rows if mean is None else [*rows, mean]


def mean_change(name: str, rows: Sequence[ChangeRow], max_drop: float | None) -> ChangeRow | None:
    """The row of the mean over all kinds that have a score, or None if no kind has a score."""
    pairs = [(row["before"], row["now"]) for row in rows if row["before"] is not None and row["now"] is not None]
    if not pairs:
        return None
    before, now = (float(np.mean(column)) for column in zip(*pairs, strict=True))
    bounds = [(row["change_low"], row["change_high"]) for row in rows if row["change"] is not None]
    changes = [row["change"] for row in rows if row["change"] is not None]
    interval = mean_interval(changes, cast("list[tuple[float, float]]", bounds))
    return task_row(name, ALL, sum(row["items"] for row in rows), (before, now), interval, max_drop)


def task_row(name: str, kind: str, items: int, scores: Pair, interval: Pair, max_drop: float | None) -> ChangeRow:
    """The row of one kind of task. `scores` are the baseline's mean score and the present one, in points.

    `interval` is the 95 % interval of their difference, in points.
    """
    before, now = scores
    change = None if before is None or now is None else now - before
    low, high = interval
    few = items < ENOUGH
    dropped = change is not None and max_drop is not None and change < -max_drop
    fell = dropped or (not few and high is not None and high < 0)
    return {
        "name": name,
        "kind": kind,
        "unit": "points",
        "items": items,
        "before": before,
        "now": now,
        "before_se": None,
        "now_se": None,
        "tokens": None,
        "change": change,
        "change_low": low,
        "change_high": high,
        "too_few": few,
        "fell": fell,
        "measured": True,
    }


def drift_changes(name: str, before: Mapping[str, Any], now: Mapping[str, Any], *, seed: int = 0) -> list[ChangeRow]:
    """The changes of KL and perplexity. They are paired by document if both rows list all documents."""
    tokens, kl, nll = paired_documents(before, now)
    kl_change = now["kl"] - before["kl"]
    growth = 100 * (now["perplexity"] / before["perplexity"] - 1)
    if len(tokens) > 1:
        kl_interval = sums_interval(np.stack([tokens, kl], 1), seed=seed)
        low, high = sums_interval(np.stack([tokens, nll], 1), seed=seed)
        growth_interval: Pair = tuple(None if end is None else 100 * math.expm1(end) for end in (low, high))  # type: ignore[assignment]
    else:
        kl_interval, growth_interval = unpaired_interval(kl_change, before["kl_se"], now["kl_se"]), (None, None)
    pair, items = (before, now), len(tokens)
    return [
        figure_row(name, "kl", items, pair, kl_change, kl_interval),
        figure_row(name, "perplexity", items, pair, growth, growth_interval),
    ]


def unpaired_interval(change: float, before: float | None, now: float | None) -> Pair:
    """The interval of a change that is not paired: change ± two standard errors of the difference.

    `before` and `now` are the standard errors of the two values. If one of them is None, the interval is (None, None).
    """
    if before is None or now is None:
        return None, None
    error = 2 * math.hypot(before, now)
    return change - error, change + error


def figure_row(
    name: str,
    kind: Literal["kl", "perplexity"],
    items: int,
    pair: tuple[Mapping[str, Any], Mapping[str, Any]],
    change: float,
    interval: Pair,
) -> ChangeRow:
    """The row of one figure of a `CompareRow`, KL or perplexity.

    The figure got worse if the interval of its change is above 0 and the change is above NOISE.
    """
    low, high = interval
    return {
        "name": name,
        "kind": kind,
        "unit": "nats" if kind == "kl" else "%",
        "items": items,
        "before": pair[0][kind],
        "now": pair[1][kind],
        "before_se": pair[0].get(f"{kind}_se"),
        "now_se": pair[1].get(f"{kind}_se"),
        "tokens": pair[1].get("tokens"),
        "change": change,
        "change_low": low,
        "change_high": high,
        "too_few": False,
        "fell": low is not None and low > 0 and change > NOISE[kind],
        "measured": True,
    }


def paired_documents(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Values, Values, Values]:
    """Three (documents,) arrays: tokens, and the differences of KL and of nll, summed over each document's tokens.

    The arrays are empty if a row's documents do not cover all tokens.
    """
    old, new = ({row["document"]: row for row in one.get("documents") or ()} for one in (before, now))
    complete = all(sum(row["tokens"] for row in rows.values()) == before["tokens"] for rows in (old, new))
    if not complete or old.keys() != new.keys():
        return np.empty(0), np.empty(0), np.empty(0)
    tokens = np.array([old[key]["tokens"] for key in old], dtype=np.float64)
    sums = [tokens * [new[key][figure] - old[key][figure] for key in old] for figure in ("kl", "nll")]
    return tokens, sums[0], sums[1]

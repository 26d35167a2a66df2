"""Has a checkpoint fallen since a baseline? The same tasks and the same text again, compared in pairs.

Item by item with the scores that the history kept, document by document with the KL and nll that it kept; the interval
is the middle 95 % of redraws of items or documents, both sides drawn together (Efron, 1979). A fall is significant
when the whole interval is one. A row is a plain dict:

    name kind unit items             kind of task, "all", "kl" or "perplexity"; points, nats, %; how many were paired
    before now change                scores and change in points (0 to 100), KL in nats; perplexity's change in %
    change_low change_high fell      None for the interval where there is nothing to redraw
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.core.errors import QCompressError
from compress.evaluate.tasks.item import Item
from compress.evaluate.tasks.retention import DRAWS, TAILS, paired
from compress.evaluate.tasks.runner import ALL, Scores, values
from compress.evaluate.tasks.suite import Suite

Row = dict[str, Any]
Values = NDArray[np.float64]
Pair = tuple[float | None, float | None]
DRIFTS = ("verify", "compare")  # commands whose rows hold KL and perplexity
SEEN = {"kl": 1e-4, "perplexity": 0.05}  # nats, %: below it another processor or torch says as much


@dataclass(frozen=True)
class Baseline:
    """The last verdicts under one tag on one checkpoint: `tasks` by kind, `drift` None where nothing was compared."""

    tag: str
    name: str
    tasks: Mapping[str, Row]
    drift: Row | None
    reference: str | None  # the digest of the checkpoint that the drift was measured against

    @property
    def about(self) -> Row:
        """A row of the tasks, for what all of them say of the suite and the settings."""
        return next(iter(self.tasks.values()))


def find_baseline(verdicts: Sequence[Row], tag: str, name: str, *, where: str = "the history") -> Baseline:
    """The baseline of `name`, or of the only candidate under that tag. QCompressError for none, and for several."""
    tagged = [row for row in verdicts if row["tag"] == tag]
    if not tagged:
        known = ", ".join(sorted({row["tag"] for row in verdicts if row["tag"]})) or "none"
        raise QCompressError(f"{where}: has no tag {tag}; known: {known}; qcompress eval --history --tag {tag} sets it")
    names = list(dict.fromkeys(row["name"] for row in tagged))
    candidates = list(dict.fromkeys(row["name"] for row in tagged if row.get("role") == "candidate"))
    if name not in names:
        if len(candidates) != 1:
            raise QCompressError(f"{where}: {tag} holds {', '.join(names)}, not {name}; name one with --name")
        name = candidates[0]
    own = [row for row in tagged if row["name"] == name]
    asked = [row for row in own if row["command"] == "eval" and row["kind"] != ALL]
    tasks = {row["kind"]: row for row in asked if row["time"] == asked[-1]["time"]}
    drift = next((row for row in reversed(own) if row["command"] in DRIFTS and row.get("role") == "candidate"), None)
    if not tasks and drift is None:
        raise QCompressError(f"{where}: {tag} holds no eval, verify or compare of {name}; run one with --tag {tag}")
    return Baseline(tag, name, tasks, drift, reference_digest(tagged, drift))


def reference_digest(tagged: Sequence[Row], drift: Row | None) -> str | None:
    """Of the reference that `drift` was measured against; None where that run kept none."""
    if drift and drift.get("reference_digest"):
        return str(drift["reference_digest"])
    same = [row for row in tagged if drift and row["command"] == "compare" and row["time"] == drift["time"]]
    return next((row["digest"] for row in same if row.get("role") == "reference"), None)


def baseline_items(baseline: Baseline, suite: Suite) -> list[Item]:
    """The items that the baseline's scores are of. QCompressError, with both digests, for another suite."""
    about = baseline.about
    if about.get("suite_digest") is None:
        raise QCompressError(
            f"{baseline.tag}: is of {about['suite']}, which watch cannot ask again; tag a suite's eval"
        )
    if about["suite_digest"] != suite.digest:
        raise QCompressError(
            f"{baseline.tag}: was asked suite {about['suite']} {about['suite_digest']}, this one is {suite.name} "
            f"{suite.digest}; name the old one with --suite, or tag a new baseline"
        )
    known = {item.id: item for item in suite.items}
    return [known[item] for row in baseline.tasks.values() for item in row["scores"]]


def refuse_other(baseline: Baseline, **now: Any) -> None:
    """QCompressError for a drift that would be measured otherwise than the baseline's, by the name of what differs."""
    for key, value in now.items():
        before = baseline.reference if key == "reference" else (baseline.drift or {}).get(key)
        if before is not None and before != value:
            raise QCompressError(f"{baseline.tag}: {key} was {before}, now it is {value}; tag a new baseline")


def task_changes(baseline: Baseline, scores: Scores, *, max_drop: float | None = None, seed: int = 0) -> list[Row]:
    """A row per kind of task and one for their mean. A drop of more than `max_drop` points counts as a fall too."""
    generator = np.random.default_rng(seed)
    now = values(scores)
    rows, drawn = [], []
    for kind, row in baseline.tasks.items():
        before, after = paired(list(row["scores"].values()), now[kind])
        differences = 100 * (after - before)
        drawn.append(redraw_mean(differences, np.ones_like(differences), generator))
        pair = (100 * float(before.mean()), 100 * float(after.mean())) if len(before) else (None, None)
        rows.append(task_row(baseline.name, kind, len(differences), pair, drawn[-1], max_drop))
    known = [row for row in rows if row["change"] is not None]
    if not known:
        return rows
    means = (float(np.mean([row["before"] for row in known])), float(np.mean([row["now"] for row in known])))
    total = sum(row["items"] for row in rows)
    whole = np.mean([found for found in drawn if len(found)], axis=0)
    return [*rows, task_row(baseline.name, ALL, total, means, whole, max_drop)]


def task_row(name: str, kind: str, items: int, scores: Pair, drawn: Values, max_drop: float | None) -> Row:
    """A kind's row of both mean scores, and of redraws of their difference, in points."""
    before, now = scores
    change = None if before is None or now is None else now - before
    low, high = ends(drawn)
    fell = change is not None and ((high is not None and high < 0) or (max_drop is not None and change < -max_drop))
    found = {"before": before, "now": now, "change": change, "change_low": low, "change_high": high, "fell": fell}
    return {"name": name, "kind": kind, "unit": "points", "items": items, **found}


def drift_changes(name: str, before: Row, now: Row, *, seed: int = 0) -> list[Row]:
    """Two rows: the KL to the reference, and the perplexity, paired by document where both rows hold all of theirs."""
    generator = np.random.default_rng(seed)
    tokens, kl, nll = paired_documents(before, now)
    kl_change = now["kl"] - before["kl"]
    growth = 100 * (now["perplexity"] / before["perplexity"] - 1)
    if len(tokens) > 1:
        kl_ends = ends(redraw_mean(kl, tokens, generator))
        grown = ends(100 * (np.exp(redraw_mean(nll, tokens, generator)) - 1))
    else:
        kl_ends, grown = two_errors(kl_change, before["kl_se"], now["kl_se"]), (None, None)
    return [
        figure_row("kl", "nats", (before, now), kl_change, kl_ends) | {"name": name, "items": len(tokens)},
        figure_row("perplexity", "%", (before, now), growth, grown) | {"name": name, "items": len(tokens)},
    ]


def two_errors(change: float, before: float | None, now: float | None) -> Pair:
    """The change give or take two standard errors; (None, None) where one window left either side without its own."""
    if before is None or now is None:
        return None, None
    error = 2 * math.hypot(before, now)
    return change - error, change + error


def figure_row(kind: str, unit: str, both: tuple[Row, Row], change: float, interval: Pair) -> Row:
    """What changed in one figure of two rows of `compare_rows`; it fell where that is sure, and more than noise."""
    low, high = interval
    fell = low is not None and low > 0 and change > SEEN[kind]
    found = {"change": change, "change_low": low, "change_high": high, "fell": fell}
    return {"kind": kind, "unit": unit, "before": both[0][kind], "now": both[1][kind], **found}


def paired_documents(before: Row, now: Row) -> tuple[Values, Values, Values]:
    """(documents,) tokens, and differences of KL and nll summed over them; empty unless both rows hold every token."""
    old, new = ({row["document"]: row for row in one.get("documents") or ()} for one in (before, now))
    whole = all(sum(row["tokens"] for row in own.values()) == before["tokens"] for own in (old, new))
    if not whole or old.keys() != new.keys():
        return np.empty(0), np.empty(0), np.empty(0)
    tokens = np.array([old[key]["tokens"] for key in old], dtype=np.float64)
    sums = [tokens * [new[key][figure] - old[key][figure] for key in old] for figure in ("kl", "nll")]
    return tokens, sums[0], sums[1]


def redraw_mean(sums: Values, weights: Values, generator: np.random.Generator) -> Values:
    """(DRAWS,) means, sum over sum, of units drawn with replacement; empty without units."""
    if not len(sums):
        return np.empty(0)
    picks = generator.integers(len(sums), size=(DRAWS, len(sums)))
    return np.asarray(sums[picks].sum(axis=1) / weights[picks].sum(axis=1))


def ends(drawn: Values) -> Pair:
    """The middle 95 % of redraws, (None, None) without any."""
    if not len(drawn):
        return None, None
    low, high = np.percentile(drawn, TAILS)
    return float(low), float(high)

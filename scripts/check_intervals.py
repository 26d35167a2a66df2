"""Coverage of the 95 % intervals by simulation: python scripts/check_intervals.py -o docs/results/data/intervals.json

Task scores are drawn for a reference and a candidate that depends on it. KL is drawn for windows whose levels vary as
those of real text do. A row is the share of samples in which an interval covers the truth, at 2, 5, 20 or 60 tasks or
windows. If a share is below 90 %, the exit code is 3.
"""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from compress.checkpoint.write import write_json
from compress.cli.console import emit
from compress.core.errors import GateFailure
from compress.core.proportion import difference_interval, ratio_interval, score_interval
from compress.evaluate.drift.interval import mean_interval

Row = dict[str, Any]
COUNTS = (2, 5, 20, 60)
CHANCES = ((0.8, 0.85, 0.1), (0.5, 0.8, 0.15), (0.95, 0.95, 0.5), (0.3, 0.6, 0.1))
SPREADS = (0.2, 0.4, 0.7)  # standard deviation of a window's KL over its mean
LEAST = 0.9
MEAN = 0.1  # nats


def task_rows(count: int, runs: int, generator: np.random.Generator) -> Iterator[Row]:
    """Coverage of score, retention and change. CHANCES: the reference is right; the candidate is, if so and if not."""
    for right, kept, gained in CHANCES:
        truth, inside, ratios = right * kept + (1 - right) * gained, np.zeros(3), 0
        for _ in range(runs):
            reference = (generator.random(count) < right) * 1.0
            candidate = (generator.random(count) < np.where(reference > 0, kept, gained)) * 1.0
            intervals = [score_interval(candidate.sum(), count), difference_interval(list(reference), list(candidate))]
            truths = [truth, truth - right]
            if reference.any():
                ratios += 1
                intervals.append(ratio_interval(list(reference), list(candidate)))
                truths.append(truth / right)
            for place, ((low, high), value) in enumerate(zip(intervals, truths, strict=True)):
                inside[place] += low <= value <= high
        about = {"count": count, "runs": runs, "right": right, "kept": kept, "gained": gained}
        for figure, covered, samples in zip(
            ("score", "change", "retention"), inside, (runs, runs, ratios), strict=True
        ):
            yield {"figure": figure, **about, "coverage": covered / samples}


def window_rows(count: int, runs: int, generator: np.random.Generator) -> Iterator[Row]:
    """Coverage of the mean KL of windows with 30 to 60 tokens and skewed levels."""
    for spread in SPREADS:
        inside, shape = 0, 1 / spread**2
        for number in range(runs):
            lengths = generator.integers(30, 60, size=count)
            windows = np.repeat(np.arange(count), lengths)
            levels = generator.gamma(shape, MEAN / shape, count)[windows]
            values = levels * generator.gamma(0.3, 1 / 0.3, len(windows))
            low, high = mean_interval(torch.from_numpy(values), torch.from_numpy(windows), draws=500, seed=number)
            assert low is not None and high is not None
            inside += low <= MEAN <= high
        yield {"figure": "KL", "count": count, "runs": runs, "spread": spread, "coverage": inside / runs}


def coverage_rows(runs: int) -> list[Row]:
    """The coverage of every interval at every count."""
    generator, rows = np.random.default_rng(0), list[Row]()
    for count in COUNTS:
        rows += [*task_rows(count, runs, generator), *window_rows(count, runs, generator)]
    return rows


@click.command(help=__doc__)
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON file to write.")
@click.option("--runs", default=2000, show_default=True, help="Samples per row.")
def main(out: Path | None, runs: int) -> None:
    rows = coverage_rows(runs)
    emit(rows, as_json=False)
    if out:
        command = f"scripts/check_intervals.py -o docs/results/data/{out.name} --runs {runs}"
        write_json(out, {"date": f"{date.today()}", "command": command, "runs": runs, "nominal": 0.95, "rows": rows})
    low = [row for row in rows if row["coverage"] < LEAST]
    if low:
        raise GateFailure(f"{len(low)} of {len(rows)} intervals cover too little; the first: {low[0]}")


if __name__ == "__main__":
    main()

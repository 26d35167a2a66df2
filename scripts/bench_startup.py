"""Measure the commands that read no weights, and commands with a wrong path: python scripts/bench_startup.py

Each command runs in a new process: once to fill the caches of files and bytecode, then --rounds times. The rows hold
medians of the seconds that passed, and of the seconds of CPU time, which other programs on the machine change less.
`met` compares the former with the limit. `--tree FOLDER` measures another checkout of qcompress as well, in turn, but
no wrong paths. `check` compares weights if the source of PACKED exists; its row "source not here" leaves that out.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import click

from compress.checkpoint.write import write_json
from compress.cli.console import emit
from compress.core.errors import QCompressError

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
LIMIT, WRONG_PATH = 1.0, 0.5  # seconds
CACHE = ("--samples", "64", "--seq-len", "128", "--codec", "hybrid", "--temperature", "1")
MISSING = "missing-folder"
WRONG = {  # command -> arguments with a path that does not exist
    "check": (MISSING,),
    "plan": (MISSING,),
    "run": ("missing.yaml",),
    "bench": (MISSING, "--quick"),
    "quantize": (MISSING, "-o", "out"),
    "cache": ("inspect", MISSING),
    "distill": (MISSING, "-o", "out"),
    "init-student": (MISSING, "--blocks", "2", "-o", "out"),
    "generate": (MISSING, "--prompts", "missing.jsonl", "-o", "out.jsonl"),
    "capture": (MISSING, "-o", "out"),
    "verify": (MISSING, MISSING),
    "compare": (MISSING, MISSING),
    "eval": (MISSING, "--reference", MISSING),
    "watch": (MISSING, "--baseline", "v1", "--history", "verdicts.sqlite"),
    "history": ("missing.sqlite",),
    "import": ("missing.gguf", "-o", "out"),
    "convert": (MISSING, "--to", "awq", "-o", "out"),
    "serve": (MISSING,),
}


def commands(model: Path, packed: Path, recipe: Path, cache: Path) -> dict[str, tuple[str, ...]]:
    """The commands that read no weights, by name. `check` reads those of `packed`."""
    return {
        "check": ("check", str(packed)),
        "plan": ("plan", str(model)),
        "run --dry-run": ("run", str(recipe), "--dry-run"),
        "bench --predict-only": ("bench", str(model), str(packed), "--predict-only", "--hardware", "all"),
        "quantize --dry-run": ("quantize", str(model), "-o", "out", "--dry-run"),
        "cache inspect": ("cache", "inspect", str(cache)),
        "--help": ("--help",),
        "quantize -h": ("quantize", "-h"),
    }


def cpu_seconds() -> float:
    """The CPU time of all ended child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(tree: Path, folder: Path, arguments: Sequence[str]) -> tuple[Row, "subprocess.CompletedProcess[str]"]:
    """The seconds and CPU seconds of one command of the checkout `tree`, run in `folder`, and its result."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    started, before = time.perf_counter(), cpu_seconds()
    result = subprocess.run(
        [sys.executable, "-m", "compress.cli", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    return {"seconds": time.perf_counter() - started, "cpu": cpu_seconds() - before}, result


def measure(name: str, arguments: Sequence[str], trees: Sequence[Path], folder: Path, rounds: int, limit: float) -> Row:
    """The row of one command: its median seconds in each tree. Raises QCompressError if it fails unexpectedly."""
    wrong_path = limit == WRONG_PATH
    samples: dict[Path, list[Row]] = {tree: [] for tree in trees}
    for number in range(rounds + 1):
        for tree in trees:
            taken, result = run(tree, folder, arguments)
            if (result.returncode != 0) != wrong_path:
                last = (result.stderr.strip() or "no message").splitlines()[-1]
                raise QCompressError(f"qcompress {' '.join(arguments)}: exit code {result.returncode}: {last}")
            samples[tree] += [taken] if number else []
    row: Row = {"command": name, "limit": limit}
    for tree in trees:
        prefix = "" if tree == ROOT else f"{tree.name} "
        row |= {f"{prefix}{key}": median(samples[tree], key) for key in ("seconds", "cpu")}
    return row | {"met": row["seconds"] <= limit}


def median(samples: Sequence[Row], key: str) -> float:
    return round(statistics.median(sample[key] for sample in samples), 3)


def make_cache(model: Path, out: Path) -> Path:
    """A small cache of the model's outputs."""
    _, result = run(ROOT, Path.cwd(), ("capture", str(model), "-o", str(out), *CACHE))
    if result.returncode:
        raise QCompressError(f"{out}: capture failed: {result.stderr.strip().splitlines()[-1]}")
    return out


@click.command(help=__doc__)
@click.option("--model", type=click.Path(path_type=Path), default=Path("build/smollm2"), show_default=True)
@click.option("--packed", type=click.Path(path_type=Path), default=Path("build/quickstart/awq"), show_default=True)
@click.option("--recipe", type=click.Path(path_type=Path), default=Path("recipes/quickstart.yaml"), show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), help="Cache to inspect.  [default: a small new one]")
@click.option("--tree", "others", type=click.Path(path_type=Path), multiple=True, help="Other checkout. Repeatable.")
@click.option("--rounds", default=5, show_default=True, help="Measured runs of each command.")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON file to write.")
def main(
    model: Path, packed: Path, recipe: Path, cache: Path | None, others: tuple[Path, ...], rounds: int, out: Path | None
) -> None:
    trees = [ROOT, *(other.resolve() for other in others)]
    with tempfile.TemporaryDirectory() as name:
        empty = Path(name)
        cache = cache or make_cache(model, empty / "cache")
        kinds = commands(*(path.resolve() for path in (model, packed, recipe, cache)))
        rows = [measure(key, arguments, trees, Path.cwd(), rounds, LIMIT) for key, arguments in kinds.items()]
        source_gone = ("check", str(packed.resolve()))
        rows.append(measure("check, source not here", source_gone, trees, empty, rounds, LIMIT))
        for key, arguments in WRONG.items():
            rows.append(measure(f"{key}, wrong path", (key, *arguments), [ROOT], empty, rounds, WRONG_PATH))
    emit(rows, as_json=False)
    if out:
        options = f"{' --tree OTHER' * len(others)} --rounds {rounds}"
        command = f"scripts/bench_startup.py{options} -o docs/results/data/{out.name}"
        machine = {"cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 1)}
        write_json(out, {"date": f"{date.today()}", "command": command, **machine, "rows": rows})


if __name__ == "__main__":
    main()

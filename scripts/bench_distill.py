"""Compare the training speed with TRL's GKD trainer on one machine: python scripts/bench_distill.py TEACHER

Four runs train the same student, which keeps --blocks blocks of the teacher. All use the same windows, steps and
micro-batches, float32, and the KL at temperature 1. Each runs alone in its own process:

trl is TRL's trainer with λ = 0, in the environment that scripts/install_trl.sh creates. online is qcompress with the
teacher in memory. hidden and hybrid are qcompress with a cache of that codec.

The first --warmup steps and the last step are not measured. Writing each cache has its own row. Every target is printed
with the measured value.
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # else idle threads of this process would slow down the measured ones

import json
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from script_options import out_option

from compress.checkpoint.read import Checkpoint
from compress.cli.console import emit, report
from compress.cli.options import json_option
from compress.distill.config import DistillConfig
from compress.distill.targets.cache import Cache
from compress.distill.targets.cached_teacher import cache_text

Row = dict[str, Any]
HERE = Path(__file__).resolve().parent
NAMES = ("trl", "online", "hidden", "hybrid")
TARGETS = (("hidden", "trl", 1.8), ("hybrid", "trl", 1.8), ("hidden", "online", 1.3), ("hybrid", "online", 1.5))
SAME_CURVE = {"float16": 1e-3, "float32": 1e-5}  # largest relative difference of losses, by dtype of hidden states


def run(command: list[str], log: Path) -> tuple[Row, str]:
    """Run a command. Returns a row with seconds and peak memory, and the last line that the command printed.

    Raises RuntimeError, with the last line of the log, if the command fails.
    """
    paths = [str(HERE.parent), str(HERE / "trainers"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_WAIT_POLICY": "ACTIVE"}
    started = time.perf_counter()
    with log.with_suffix(".out").open("w") as stdout, log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    row = {"command_seconds": round(time.perf_counter() - started, 1), "peak_gib": usage.ru_maxrss / 2**20}
    if status:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise RuntimeError(f"{' '.join(command[:4])}: {lines[-1] if lines else 'no output'}; see {log}")
    return row, (log.with_suffix(".out").read_text().strip().splitlines() or [""])[-1]


def qcompress(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from compress.cli import cli; cli()", *map(str, arguments)]


def prepare(teacher: Path, out: Path, sizes: Row, text: str, blocks: int, hidden_dtype: str) -> list[Row]:
    """Write the untrained student, a cache per codec, and the windows that all runs use. Returns one row per cache."""
    sources = ("--text", text, "--seq-len", sizes["seq_len"])
    report({"student": out / "student"})
    run(qcompress("init-student", teacher, "--blocks", blocks, "--out", out / "student", *sources), out / "student.log")
    windows = ("--samples", sizes["steps"] * sizes["batch_size"])
    options = {"hidden": ("--dtype", hidden_dtype), "hybrid": ("--temperature", 1)}
    rows = []
    for codec, codec_options in options.items():
        command = qcompress(
            "capture", teacher, "--codec", codec, "--out", out / codec, *sources, *windows, *codec_options
        )
        row, _ = run(command, out / f"capture-{codec}.log")
        rows.append({"name": f"capture {codec}", **row})
        report(rows[-1])
    settings = DistillConfig(student=str(out / "student"), text=(text,), cache=str(out / "hidden"), **sizes)
    ids = cache_text(Cache(out / "hidden"), settings, Checkpoint(teacher).tokenizer).windows.ids
    (out / "windows.json").write_text(json.dumps(ids.tolist()))
    return rows


def settings_of(name: str, out: Path, sizes: Row, text: str, rate: float) -> Row:
    """The settings of a qcompress run: the loss is the KL at temperature 1; one evaluation at the end."""
    cache = None if name == "online" else str(out / name)
    rest = {"alpha": 1.0, "temperature": 1.0, "eval_every": sizes["steps"], "learning_rate": rate}
    return {"student": str(out / "student"), "text": [text], "cache": cache, **sizes, **rest}


def command_of(name: str, teacher: Path, out: Path, sizes: Row, text: str, rate: float, python: Path) -> list[str]:
    place = out / f"run-{name}"
    shutil.rmtree(place, ignore_errors=True)
    if name == "trl":
        arguments = (teacher, out / "student", out / "windows.json", place, sizes["steps"], sizes["batch_size"], rate)
        return [str(python), "-W", "ignore", str(HERE / "trainers/run_trl_gkd.py"), *map(str, arguments)]
    file = out / f"{name}.json"
    file.write_text(json.dumps(settings_of(name, out, sizes, text, rate)))
    return [sys.executable, str(HERE / "trainers/run_qcompress_distill.py"), str(teacher), str(place), str(file)]


def timed(answer: Row, sizes: Row, warmup: int) -> Row:
    """Tokens per second and seconds per step over the measured steps, and the losses of all steps."""
    counted = answer["seconds"][warmup : sizes["steps"] - 1]
    speed = len(counted) * sizes["batch_size"] * sizes["seq_len"] / sum(counted)
    return {"tokens_per_second": speed, "seconds_per_step": sum(counted) / len(counted), "losses": answer["losses"]}


def compare_targets(rows: list[Row], hidden_dtype: str) -> list[Row]:
    """One row per target: the target, the measured value, and whether it is met."""
    speed = {row["name"]: row["tokens_per_second"] for row in rows}
    results = []
    for name, against, least in TARGETS:
        ratio = speed[name] / speed[against] if {name, against} <= speed.keys() else None
        met = "not measured" if ratio is None else ratio >= least
        results.append(
            {"name": f"{name} / {against}, tokens/s", "target": f">= {least}", "measured": ratio, "met": met}
        )
    curves = {row["name"]: row["losses"] for row in rows}
    if {"hidden", "online"} <= curves.keys():
        pairs = zip(curves["hidden"], curves["online"], strict=True)
        worst, limit = max(abs(a - b) / abs(b) for a, b in pairs), SAME_CURVE[hidden_dtype]
        name = f"hidden ({hidden_dtype}) and online, relative difference of losses"
        results.append({"name": name, "target": f"<= {limit:g}", "measured": worst, "met": worst <= limit})
    return results


def trl_python(environment: Path) -> Path:
    """The Python of TRL's environment. If that is missing and this Python has TRL, this Python."""
    python = environment / "bin/python"
    return python.absolute() if python.exists() or find_spec("trl") is None else Path(sys.executable)


@click.command(help=__doc__)
@click.argument("teacher", type=click.Path(exists=True, file_okay=False, path_type=Path))
@out_option("build/bench-distill", "Folder for all outputs. An old folder is removed.")
@click.option(
    "--trl",
    type=click.Path(path_type=Path),
    default=Path("build/trl"),
    show_default=True,
    help="Environment of scripts/install_trl.sh.",
)
@click.option(
    "--only", multiple=True, type=click.Choice(NAMES), help="Run to measure. Repeatable.  [default: all four]"
)
@click.option("--text", default="default", show_default=True, help="Training text: a file or a bundled text.")
@click.option("--blocks", type=int, default=15, show_default=True, help="Blocks of the student.")
@click.option("--steps", type=click.IntRange(4), default=24, show_default=True, help="Training steps per run.")
@click.option("--warmup", type=click.IntRange(1), default=4, show_default=True, help="First steps, not measured.")
@click.option("--batch-size", type=int, default=4, show_default=True, help="Windows per step.")
@click.option("--seq-len", type=int, default=256, show_default=True, help="Tokens per window.")
@click.option("--learning-rate", type=float, default=3e-4, show_default=True, help="Peak learning rate.")
@click.option(
    "--hidden-dtype",
    type=click.Choice(list(SAME_CURVE)),
    default="float16",
    show_default=True,
    help="Dtype of the states in the hidden cache.",
)
@json_option
def main(
    teacher: Path,
    out: Path,
    trl: Path,
    only: tuple[str, ...],
    text: str,
    blocks: int,
    warmup: int,
    learning_rate: float,
    hidden_dtype: str,
    as_json: bool,
    **sizes: int,
) -> None:
    if warmup >= sizes["steps"] - 1:
        raise click.UsageError(f"--warmup {warmup} leaves no step to measure; raise --steps {sizes['steps']}")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    captures = prepare(teacher, out, sizes, text, blocks, hidden_dtype)
    rows = []
    for name in only or NAMES:
        command = command_of(name, teacher, out, sizes, text, learning_rate, trl_python(trl))
        row, answer = run(command, out / f"{name}.log")
        rows.append({"name": name, **timed(json.loads(answer), sizes, warmup), **row})
        report({key: value for key, value in rows[-1].items() if key != "losses"})
    targets = compare_targets(rows, hidden_dtype)
    if as_json:
        emit({"rows": rows, "captures": captures, "targets": targets, "load": os.getloadavg()[0]}, as_json=True)
        return
    emit([*rows, *captures], as_json=False)
    emit(targets, as_json=False)


if __name__ == "__main__":
    main()

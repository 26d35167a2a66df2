"""Damage small input files at random and run the commands that read them: an error must be one line, never a traceback.

    python scripts/fuzz.py --cases 2000
    python scripts/fuzz.py --seed 7 --only config.json --case 12 --keep build/fuzz

A case is a damaged copy of one file of a small checkpoint, a text or a recipe. A command may succeed or end with exit
code 1 and one line, 2 or 3. Everything else is printed as a fault, with the numbers that make the case again. GGUF
files have a test of their own. `mutators.py` has the table of damage.
"""

import copy
import json
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml
from click.testing import CliRunner
from mutators import BYTES, VALUES

from calibration.bounded import limited_time

SECONDS, PEAK_BYTES = 20, 1_000_000_000  # CPU time, and growth of the peak memory, of one command
ROWS = [{"text": "The river rises in the hills."}, {"prompt": "Who?", "response": "The cat."}]
ROWS += [{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}] * 3
OPEN = (("check", "MODEL"), ("plan", "MODEL"), ("quantize", "MODEL", "--method", "rtn", "--dry-run", "-o", "OUT"))
DISTILL = ("distill", "MODEL", "--blocks", "1", "--dry-run", "-o", "OUT")
TEXT = (("quantize", "MODEL", "--dry-run", "-o", "OUT", "--text", "FILE"), (*DISTILL, "--text", "FILE"))
RUN = (("run", "FILE", "--dry-run"),)
COMMANDS = {  # file -> the commands that read it
    "config.json": (*OPEN, DISTILL),
    "model.safetensors": OPEN,
    "tokenizer.json": OPEN,
    "tokenizer_config.json": (*OPEN, DISTILL),
    "generation_config.json": OPEN,
    "text.jsonl": TEXT,
    "recipe.yaml": RUN,
}


@dataclass(frozen=True)
class Fault:
    """A command that did something else than it may: `seed`, `file` and `case` make the damage again."""

    seed: int
    file: str
    case: int
    command: str
    reason: str


def write_originals(model: Path, folder: Path) -> None:
    """Copy a checkpoint to `folder`/model, and write the text and the recipe that cases damage."""
    shutil.copytree(model, folder / "model")
    config = folder / "model" / "generation_config.json"
    if not config.exists():
        config.write_text(json.dumps({"eos_token_id": [1, 2], "max_length": 64, "do_sample": True}))
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    variant = {"name": "a", "method": "awq", "max_size": "2GB", "group_size": 32, "text": ["default=0.5"]}
    stages = [{"name": "one", "text": ["default"], "steps": 4}, {"name": "two", "replay": 0.5, "tokens": 1000}]
    distill = {"blocks": 1, "learning_rate": 1e-4, "stages": stages}
    recipe = {"teacher": str(folder / "model"), "out": str(folder / "run"), "distill": distill, "quantize": [variant]}
    recipe |= {"verify": {"samples": 4, "max_kl": 0.3}, "eval": {"limit": 1}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def damaged(name: str, data: bytes, rng: random.Random) -> bytes:
    """The content of a file with one to three changes, to its values or to its bytes."""
    if rng.random() < 0.3:
        return change_bytes(data, rng, limit=2000 if name.endswith(".safetensors") else None)
    if name.endswith(".safetensors"):
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.dumps(change_value(json.loads(data[8:end]), rng)).encode()
        return len(header).to_bytes(8, "little") + header + data[end:]
    if name.endswith(".jsonl"):
        lines = data.decode().splitlines()
        place = rng.randrange(len(lines))
        lines[place] = json.dumps(change_value(json.loads(lines[place]), rng), ensure_ascii=False)
        return "\n".join(lines).encode(errors="surrogatepass")
    if name.endswith(".yaml"):
        return yaml.safe_dump(change_value(yaml.safe_load(data), rng)).encode()
    return json.dumps(change_value(json.loads(data), rng)).encode()


def change_value(value: Any, rng: random.Random) -> Any:
    box = [copy.deepcopy(value)]
    for _ in range(rng.randint(1, 3)):
        if box:
            rng.choice(VALUES)(rng, box)
    return box[0] if box else None


def change_bytes(data: bytes, rng: random.Random, limit: int | None = None) -> bytes:
    """The bytes with changes in the first `limit`."""
    start, rest = bytearray(data[:limit]), data[limit:] if limit else b""
    for _ in range(rng.randint(1, 3)):
        if start:
            rng.choice(BYTES)(rng, start)
    return bytes(start) + rest


@contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    """Context in which a file has another content."""
    original = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(original)


def run_case(folder: Path, name: str, seed: int, case: int) -> list[Fault]:
    """Damage the file `name` and run its commands; returns the faults."""
    from compress.cli import cli

    rng = random.Random(f"{seed} {name} {case}")
    path = folder / "model" / name if (folder / "model" / name).exists() else folder / name
    words = {"MODEL": str(folder / "model"), "OUT": str(folder / "out"), "FILE": str(path)}
    faults = []
    with replaced(path, damaged(name, path.read_bytes(), rng)):
        for command in COMMANDS[name]:
            arguments = [words.get(word, word) for word in command]
            before, started = peak_bytes(), time.process_time()
            with limited_time(SECONDS, cpu=True):
                result = CliRunner().invoke(cli, arguments)
            reason = fault_of(result, time.process_time() - started, peak_bytes() - before)
            if reason:
                faults.append(Fault(seed, name, case, " ".join(arguments), reason))
    return faults


def fault_of(result: Any, seconds: float, grown: int) -> str | None:
    """What a command did that it may not do; None if nothing."""
    errors = [line for line in result.output.splitlines() if line.startswith("Error:")]
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"exception {result.exception!r:.300}"
    if result.exit_code not in (0, 1, 2, 3) or "Traceback" in result.output or "this is a bug" in result.output:
        return f"exit code {result.exit_code}: {result.output[-400:]}"
    if result.exit_code == 1 and len(errors) != 1:
        return f"{len(errors)} error lines: {result.output[-400:]}"
    if seconds > SECONDS or grown > PEAK_BYTES:
        return f"{seconds:.1f} s, {grown / 1e9:.1f} GB more"
    return None


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@click.command()
@click.option("--cases", type=click.IntRange(1), default=2000, show_default=True, help="Number of damaged files.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all random numbers.")
@click.option("--only", type=click.Choice(list(COMMANDS)), help="Damage only this file.")
@click.option("--case", type=click.IntRange(0), help="Run only the case of this number.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for the damaged file of --only and --case.")
def main(cases: int, seed: int, only: str | None, case: int | None, keep: Path | None) -> None:
    """Run damaged files through the commands and print every fault. The exit code is 1 if there is one."""
    from killing import tiny_model

    count = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_originals(tiny_model(folder / "tiny", 2), folder)
        names = [only] if only else list(COMMANDS)
        if keep and only and case is not None:
            path = folder / "model" / only if (folder / "model" / only).exists() else folder / only
            keep.mkdir(parents=True, exist_ok=True)
            (keep / only).write_bytes(damaged(only, path.read_bytes(), random.Random(f"{seed} {only} {case}")))
        for number in range(cases) if case is None else (case * len(names),):
            for fault in run_case(folder, names[number % len(names)], seed, number // len(names)):
                count += 1
                click.echo(f"--seed {fault.seed} --only {fault.file} --case {fault.case}: {fault.command}")
                click.echo(f"    {fault.reason}")
    click.echo(f"{count} faults")
    raise SystemExit(bool(count))


if __name__ == "__main__":
    main()

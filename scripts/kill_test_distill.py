"""Kill `qcompress capture` and `qcompress distill --cache` at random moments, resume them, and compare every byte.

    python scripts/kill_test_distill.py --tiny --kills 10
    python scripts/kill_test_distill.py build/smollm2 --kills 10 --blocks 20 --steps 12 --batch-size 2

Moments are drawn over the length of the uninterrupted run; a run that ends before its moment is compared, removed and
begun again. Prints one line per kill. Exit code 1 when a byte of the cache, the loss curve or a byte of the student
differs, or when work is left behind.
"""

import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["compress.distill.job", "compress.distill.capture", "compress.cli.distill"])
CAPTURE = ("--codec", "hidden", "--shard-windows", "4")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("teacher", type=click.Path(path_type=Path), required=False)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option("--tiny", is_flag=True, help="A random model of 4 blocks instead of TEACHER, and a student of 2.")
@click.option("--kills", type=click.IntRange(1), default=10, show_default=True, help="Of capture, and of training.")
@click.option("--n-samples", default=32, show_default=True, help="Windows that are captured.")
@click.option("--seq-len", default=32, show_default=True)
@click.option("--save-every", default=3, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(
    teacher: Path | None,
    options: tuple[str, ...],
    tiny: bool,
    kills: int,
    n_samples: int,
    seq_len: int,
    save_every: int,
    seed: int,
) -> None:
    """TEACHER is a 16-bit checkpoint; further OPTIONS go to `qcompress distill`."""
    if tiny == (teacher is not None):
        raise click.UsageError("give TEACHER or --tiny")
    random.seed(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = str(tiny_model(folder / "tiny") if teacher is None else teacher)
        run(["distill", "--help"], None)  # imports, once
        size = ("--seq-len", str(seq_len))
        capture = ["capture", source, *CAPTURE, "--n-samples", str(n_samples), *size, "--out"]
        differing = kill_and_compare("capture", capture, folder / "cache", kills)
        small = ("--blocks", "2", "--steps", "30", "--learning-rate", "1e-3", "--eval-every", "5") if tiny else ()
        cache = ("--cache", str(folder / "cache" / "whole"), "--save-every", str(save_every))
        distill = ["distill", source, *small, *size, *cache, *options, "--out"]
        differing += kill_and_compare("distill", distill, folder / "student", kills)
    print("; ".join(differing) or "every byte and every loss is that of the uninterrupted run")
    sys.exit(bool(differing))


def tiny_model(out: Path) -> Path:
    """A random llama of 4 blocks with a tokenizer, as the tests make them."""
    sys.path.insert(0, str(ROOT))
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.conftest import SHAPE, save_random

    config = LlamaConfig(**SHAPE | {"num_hidden_layers": 4}, tie_word_embeddings=True)
    return save_random(LlamaForCausalLM(config), out, seed=1)


def qcompress(arguments: Sequence[str]) -> None:
    """The command, silent, in this process."""
    from compress.cli import cli

    with Path("/dev/null").open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        cli(list(arguments))


def run(arguments: Sequence[str], seconds: float | None) -> bool:
    """Run the command, and kill it after `seconds`; whether it ended by itself. RuntimeError when it failed."""
    process = PROCESSES.Process(target=qcompress, args=(arguments,))
    process.start()
    process.join(seconds)
    ended = not process.is_alive()
    process.kill()
    process.join()
    if ended and process.exitcode:
        raise RuntimeError(f"exit code {process.exitcode}: qcompress {' '.join(arguments)}")
    return ended


def kill_and_compare(name: str, command: Sequence[str], folder: Path, kills: int) -> list[str]:
    """Run whole, then killed `kills` times; what differed, in words: [] when nothing did."""
    folder.mkdir()
    whole, out = folder / "whole", folder / "out"
    started = time.perf_counter()
    run([*command, str(whole)], None)
    seconds = time.perf_counter() - started
    print(f"{name}, uninterrupted: {seconds:.1f} s\nkill  after s  done", flush=True)
    number, differing = 0, []
    while number < kills:
        moment = random.uniform(0, seconds)
        if run([*command, str(out)], moment):
            differing += differences(whole, out)
            shutil.rmtree(out)
            continue
        number += 1
        print(f"{number:4}  {moment:7.2f}  {done(out)}", flush=True)
    run([*command, str(out)], None)
    return [f"{name}: {one}" for one in differing + differences(whole, out)]


def done(out: Path) -> str:
    """How far a killed run had come, in words."""
    from compress.checkpoint.read import read_json
    from compress.distill.journal import JOURNAL, work_path

    if (work_path(out) / JOURNAL).is_file():
        stages = read_json(work_path(out) / JOURNAL)["stages"]
        return f"step {stages[-1]['step']} kept" if stages else "before the first state"
    shards = len(list(out.glob("targets-*"))) if out.is_dir() else 0
    return f"{shards} shards" if shards else "nothing"


def differences(whole: Path, out: Path) -> list[str]:
    """Files that are not the same in both folders (a record may name its own), and work that was left behind."""
    names = {path.name for folder in (whole, out) for path in folder.iterdir()}
    found = [name for name in sorted(names) if content(whole / name) != content(out / name)]
    return found + [path.name for path in out.parent.glob(f".{out.name}.*")]


def content(path: Path) -> bytes | None:
    """A file's bytes, its folder's own name left out; None where there is no file."""
    return path.read_bytes().replace(str(path.parent).encode(), b"OUT") if path.is_file() else None


if __name__ == "__main__":
    main()

"""Kill `qcompress quantize` at random moments, resume it each time, and compare every byte with an uninterrupted run.

    python scripts/kill_test.py --tiny --kills 20
    python scripts/kill_test.py build/smollm2 --kills 10 --method gptq --n-samples 16 --seq-len 256

Moments are drawn over the length of the uninterrupted run; a run that ends before its moment is compared, removed and
begun again. Prints one line per kill. Exit code 1 when a byte differs or work is left behind.
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
PROCESSES.set_forkserver_preload(["compress.quantize.job", "compress.cli.quantize"])


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option("--tiny", is_flag=True, help="A random model of 8 blocks instead of MODEL.")
@click.option("--kills", type=click.IntRange(1), default=20, show_default=True)
@click.option("--calibration", default="default", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(model: Path | None, options: tuple[str, ...], tiny: bool, kills: int, calibration: str, seed: int) -> None:
    """MODEL is a 16-bit checkpoint; further OPTIONS go to `qcompress quantize`."""
    if tiny == (model is not None):
        raise click.UsageError("give MODEL or --tiny")
    random.seed(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = tiny_model(folder / "tiny") if model is None else model
        small = ("--method", "awq+gptq", "--n-samples", "64", "--seq-len", "64") if tiny else ("--method", "awq+gptq")
        command = ["quantize", str(source), *small, *options, "--calibration", calibration, "--out"]
        run([*command, str(folder / "warm")], None)
        started = time.perf_counter()
        run([*command, str(folder / "whole")], None)
        seconds = time.perf_counter() - started
        print(f"uninterrupted: {seconds:.1f} s\nkill  after s  blocks done  while")
        differing = kill_and_resume([*command, str(folder / "out")], folder, kills, seconds)
    print(f"{kills} kills: {'; '.join(differing) or 'every byte is that of the uninterrupted run'}")
    sys.exit(bool(differing))


def tiny_model(out: Path) -> Path:
    """A random llama of 8 blocks with a tokenizer, as the tests make them."""
    sys.path.insert(0, str(ROOT))
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.conftest import SHAPE, save_random

    config = LlamaConfig(**SHAPE | {"num_hidden_layers": 8}, tie_word_embeddings=True)
    return save_random(LlamaForCausalLM(config), out, seed=1)


def quantize(arguments: Sequence[str]) -> None:
    """The command, silent, in this process."""
    from compress.cli import cli

    with Path("/dev/null").open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        cli(list(arguments))


def run(arguments: Sequence[str], seconds: float | None) -> bool:
    """Run the command, and kill it after `seconds`; whether it ended by itself. RuntimeError when it failed."""
    process = PROCESSES.Process(target=quantize, args=(arguments,))
    process.start()
    process.join(seconds)
    ended = not process.is_alive()
    process.kill()
    process.join()
    if ended and process.exitcode:
        raise RuntimeError(f"exit code {process.exitcode}: qcompress {' '.join(arguments)}")
    return ended


def kill_and_resume(command: Sequence[str], folder: Path, kills: int, seconds: float) -> list[str]:
    """What differed, in words: [] when nothing did."""
    from compress.checkpoint.read import read_json
    from compress.quantize.journal import JOURNAL, work_path

    out, number, differing = folder / "out", 0, []
    while number < kills:
        moment = random.uniform(0, seconds)
        if run(command, moment):
            differing += differences(folder / "whole", out)
            shutil.rmtree(out)
            continue
        number += 1
        journal = work_path(out) / JOURNAL
        done = len(read_json(journal)["blocks"]) if journal.is_file() else 0
        state = "finished" if out.exists() else "at work" if journal.is_file() else "before the work"
        print(f"{number:4}  {moment:7.2f}  {done:11}  {state}", flush=True)
        if out.exists() and not journal.is_file():
            differing += differences(folder / "whole", out)
            shutil.rmtree(out)
    run(command, None)
    return differing + differences(folder / "whole", out)


def differences(whole: Path, out: Path) -> list[str]:
    """Files that are not the same in both folders, and work that was left behind."""
    names = {path.name for folder in (whole, out) for path in folder.iterdir()}
    found = [name for name in sorted(names) if not same(whole / name, out / name)]
    return found + [path.name for path in out.parent.glob(f".{out.name}.*")]


def same(a: Path, b: Path) -> bool:
    return a.is_file() and b.is_file() and a.read_bytes() == b.read_bytes()


if __name__ == "__main__":
    main()

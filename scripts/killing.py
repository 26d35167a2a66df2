"""Kill a qcompress command at random moments, resume it, and compare every byte. Both kill tests use this module."""

import json
import multiprocessing
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

RECORD, DIGESTS = "qcompress.json", "qcompress.sha256.json"
ROOT = Path(__file__).parents[1]
FINISHED = "finished"
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["compress.quantize.job", "compress.distill.targets.capture", "compress.cli.distill"])


def kill_and_compare(
    name: str, command: Sequence[str], folder: Path, kills: int, state: Callable[[Path], str]
) -> list[str]:
    """Run the command uninterrupted, then kill and resume it `kills` times. Returns the files that differ.

    The moments of the kills are random, within the time of the uninterrupted run. `state` returns the progress of a
    killed run. If that is FINISHED, or if the run ended before its moment, the output is compared and removed, and the
    next run starts from nothing.
    """
    folder.mkdir()
    whole, out = folder / "whole", folder / "out"
    run([command[0], "--help"], None)  # so that imports are not timed
    started = time.perf_counter()
    run([*command, str(whole)], None)
    seconds = time.perf_counter() - started
    print(f"{name}, uninterrupted: {seconds:.1f} s\nkill  after s  state", flush=True)
    number, differing = 0, []
    while number < kills:
        moment = random.uniform(0, seconds)
        ended = run([*command, str(out)], moment)
        progress = FINISHED if ended else state(out)
        if not ended:
            number += 1
            print(f"{number:4}  {moment:7.2f}  {progress}", flush=True)
        if progress == FINISHED:
            differing += differences(whole, out)
            shutil.rmtree(out)
    run([*command, str(out)], None)
    return [f"{name}: {one}" for one in differing + differences(whole, out)]


def run(arguments: Sequence[str], seconds: float | None) -> bool:
    """Run the command, and kill it after `seconds`. Returns True if it ended by itself.

    Raises RuntimeError if the command failed.
    """
    process = PROCESSES.Process(target=qcompress, args=(arguments,))
    process.start()
    process.join(seconds)
    ended = not process.is_alive()
    process.kill()
    process.join()
    if ended and process.exitcode:
        raise RuntimeError(f"qcompress {' '.join(arguments)}: ended with exit code {process.exitcode}")
    return ended


def qcompress(arguments: Sequence[str]) -> None:
    """Run the command in this process, without output."""
    from compress.cli import cli

    with Path("/dev/null").open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        cli(list(arguments))


def tiny_model(out: Path, blocks: int) -> Path:
    """Write a random llama with a tokenizer, of the kind that the tests use."""
    sys.path.insert(0, str(ROOT))
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.conftest import SHAPE, save_random

    config = LlamaConfig(**SHAPE | {"num_hidden_layers": blocks}, tie_word_embeddings=True)
    return save_random(LlamaForCausalLM(config), out, seed=1)


def differences(whole: Path, out: Path) -> list[str]:
    """The files that differ between both folders, and the temporary folders that remain beside `out`."""
    names = {path.name for folder in (whole, out) for path in folder.iterdir()}
    differing = [name for name in sorted(names) if content(whole / name) != content(out / name)]
    return differing + [path.name for path in out.parent.glob(f".{out.name}.*")]


def content(path: Path) -> bytes | None:
    """The bytes of a file, in which OUT replaces the path of its folder. None if the file does not exist.

    The digest of the record is left out: the record of a student holds that path, and is compared itself.
    """
    if not path.is_file():
        return None
    data = path.read_bytes().replace(str(path.parent).encode(), b"OUT")
    if path.name != DIGESTS:
        return data
    digests = json.loads(data)
    digests.get("files", {}).pop(RECORD, None)
    return json.dumps(digests).encode()

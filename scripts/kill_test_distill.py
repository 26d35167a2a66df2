"""Kill `qcompress capture` and `qcompress distill --cache` at random moments, resume them, and compare every byte.

    python scripts/kill_test_distill.py --tiny --kills 10
    python scripts/kill_test_distill.py build/smollm2 --kills 10 --blocks 20 --steps 12 --batch-size 2

Prints one line per kill. The exit code is 1 if a byte of the cache or the student differs, the loss curve differs, or
temporary folders remain. `killing.py` does the work.
"""

import random
import sys
import tempfile
from pathlib import Path

import click
from killing import FINISHED, kill_and_compare, tiny_model

from compress.checkpoint.read import read_json
from compress.distill.training.journal import JOURNAL, work_path

CAPTURE = ("--codec", "hidden", "--shard-windows", "4")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("teacher", type=click.Path(path_type=Path), required=False)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option("--tiny", is_flag=True, help="Use a random model of 4 blocks instead of TEACHER, and a student of 2.")
@click.option("--kills", type=click.IntRange(1), default=10, show_default=True, help="Number of kills per command.")
@click.option("--samples", default=32, show_default=True, help="Number of windows to capture.")
@click.option("--seq-len", default=32, show_default=True, help="Tokens per window.")
@click.option("--save-every", default=3, show_default=True, help="Training steps between two saved states.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed for the moments of the kills.")
def main(
    teacher: Path | None,
    options: tuple[str, ...],
    tiny: bool,
    kills: int,
    samples: int,
    seq_len: int,
    save_every: int,
    seed: int,
) -> None:
    """Kill the distillation of TEACHER, a 16-bit checkpoint. All other OPTIONS are passed to `qcompress distill`."""
    if tiny == (teacher is not None):
        raise click.UsageError("give either TEACHER or --tiny")
    random.seed(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = str(tiny_model(folder / "tiny", 4) if teacher is None else teacher)
        size = ("--seq-len", str(seq_len))
        capture = ["capture", source, *CAPTURE, "--samples", str(samples), *size, "--out"]
        differing = kill_and_compare("capture", capture, folder / "cache", kills, state)
        small = ("--blocks", "2", "--steps", "30", "--learning-rate", "1e-3", "--eval-every", "5") if tiny else ()
        cache = ("--cache", str(folder / "cache" / "whole"), "--save-every", str(save_every))
        distill = ["distill", source, *small, *size, *cache, *options, "--out"]
        differing += kill_and_compare("distill", distill, folder / "student", kills, state)
    print("; ".join(differing) or "every byte and every loss is that of the uninterrupted run")
    sys.exit(bool(differing))


def state(out: Path) -> str:
    """The progress of a killed run, in words."""
    if (work_path(out) / JOURNAL).is_file():
        stages = read_json(work_path(out) / JOURNAL)["stages"]
        return f"step {stages[-1]['step']} kept" if stages else "before the first state"
    if (out / "config.json").is_file():
        return FINISHED  # killed after the clean-up, before the process ended
    shards = len(list(out.glob("targets-*"))) if out.is_dir() else 0
    return f"{shards} shards" if shards else "nothing"


if __name__ == "__main__":
    main()

"""Kill `qcompress quantize` at random moments, resume it each time, and compare every byte with an uninterrupted run.

    python scripts/kill_test.py --tiny --kills 20
    python scripts/kill_test.py build/smollm2 --kills 10 --method gptq --samples 16 --seq-len 256

Prints one line per kill. The exit code is 1 if a byte differs or temporary folders remain. `killing.py` does the work.
"""

import random
import sys
import tempfile
from pathlib import Path

import click
from killing import FINISHED, kill_and_compare, tiny_model

from compress.checkpoint.read import read_json
from compress.quantize.journal import JOURNAL, work_path


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option("--tiny", is_flag=True, help="Use a random model of 8 blocks instead of MODEL.")
@click.option("--kills", type=click.IntRange(1), default=20, show_default=True, help="Number of kills.")
@click.option("--text", default="default", show_default=True, help="Calibration text: a file or a bundled text.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed for the moments of the kills.")
def main(model: Path | None, options: tuple[str, ...], tiny: bool, kills: int, text: str, seed: int) -> None:
    """Kill the quantization of MODEL, a 16-bit checkpoint. All other OPTIONS are passed to `qcompress quantize`."""
    if tiny == (model is not None):
        raise click.UsageError("give either MODEL or --tiny")
    random.seed(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = tiny_model(folder / "tiny", 8) if model is None else model
        small = ("--method", "awq+gptq", "--samples", "64", "--seq-len", "64") if tiny else ("--method", "awq+gptq")
        command = ["quantize", str(source), *small, *options, "--text", text, "--out"]
        differing = kill_and_compare("quantize", command, folder / "kills", kills, state)
    print(f"{kills} kills: {'; '.join(differing) or 'every byte is that of the uninterrupted run'}")
    sys.exit(bool(differing))


def state(out: Path) -> str:
    """The progress of a killed run, in words."""
    journal = work_path(out) / JOURNAL
    if journal.is_file():
        return f"{len(read_json(journal)['blocks'])} blocks"
    return FINISHED if out.exists() else "before the work"


if __name__ == "__main__":
    main()

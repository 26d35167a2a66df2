"""A checkpoint with one block's scales multiplied: python scripts/damage.py CHECKPOINT OUT --block 12 --factor 1.05

Files and digests are valid, so only measuring finds the harm: `qcompress verify FP16 OUT --locate`. With
--stale-digests the digests stay those of CHECKPOINT, as after a fault of the disk, and `qcompress check OUT` finds it.
The linears of a plain checkpoint have no scales: their weights are multiplied.
"""

import shutil
from pathlib import Path

import click
from torch import Tensor

from compress.checkpoint.load import open_causal_lm
from compress.checkpoint.read import RECORD, Checkpoint
from compress.checkpoint.record import DIGESTS
from compress.checkpoint.write import TensorSpec, save_checkpoint
from compress.cli.console import emit
from compress.core.errors import QCompressError
from compress.model.blocks import linear_shapes

SCALED = ("scales", "weight_scale", "weight")


def scaled_tensors(checkpoint: Checkpoint, block: int) -> list[str]:
    """Names of the tensors that scale the linears of a block. QCompressError if the block does not exist."""
    linears = [name for name in linear_shapes(checkpoint.config) if f".{block}." in name]
    names = [f"{name}.{suffix}" for name in linears for suffix in SCALED if f"{name}.{suffix}" in checkpoint.tensors]
    if not names:
        raise QCompressError(f"{checkpoint.path}: has no block {block} with linears; blocks are counted from 0")
    return names


def damage(path: Path, out: Path, block: int, factor: float, *, stale_digests: bool = False) -> list[str]:
    """Write the damaged copy; returns the names of the tensors that were multiplied."""
    checkpoint = open_causal_lm(path)
    hurt = scaled_tensors(checkpoint, block)

    def changed(name: str) -> Tensor:
        tensor = checkpoint.tensor(name)
        return (tensor.float() * factor).to(tensor.dtype) if name in hurt else tensor

    pairs = [(TensorSpec(name, info.dtype, info.shape), changed(name)) for name, info in checkpoint.tensors.items()]
    extra = {RECORD: (path / RECORD).read_text(encoding="utf-8")} if (path / RECORD).is_file() else {}
    save_checkpoint(out, checkpoint.config, pairs, source=path, extra=extra)
    if stale_digests:
        shutil.copyfile(path / DIGESTS, out / DIGESTS)
    return hurt


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--block", type=click.IntRange(0), default=12, show_default=True)
@click.option("--factor", type=float, default=1.05, show_default=True)
@click.option("--stale-digests", is_flag=True, help="Keep the digests of CHECKPOINT.")
def main(checkpoint: Path, out: Path, block: int, factor: float, stale_digests: bool) -> None:
    hurt = damage(checkpoint, out, block, factor, stale_digests=stale_digests)
    emit({"out": str(out), "tensors": len(hurt), "first": hurt[0], "factor": factor}, as_json=False)


if __name__ == "__main__":
    main()

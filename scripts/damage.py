"""Write a damaged copy of a checkpoint: python scripts/damage.py CHECKPOINT -o OUT --block 12 --factor 1.05

The scales of one block are multiplied. In a plain checkpoint, the weights are multiplied instead. Files and digests of
the copy are valid, so only a measurement finds the damage: `qcompress verify FP16 OUT --locate`. With --stale-digests,
the copy keeps the digests of CHECKPOINT, as after a disk fault. Then `qcompress check OUT` finds the damage.
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
from compress.model.shapes import linear_shapes

SCALED = ("scales", "weight_scale", "weight")


def scaled_tensors(checkpoint: Checkpoint, block: int) -> list[str]:
    """The names of the tensors that scale a block's linears. Raises QCompressError if the block does not exist."""
    linears = [name for name in linear_shapes(checkpoint.config) if f".{block}." in name]
    names = [f"{name}.{suffix}" for name in linears for suffix in SCALED if f"{name}.{suffix}" in checkpoint.tensors]
    if not names:
        raise QCompressError(f"{checkpoint.path}: block {block} does not exist; blocks are counted from 0")
    return names


def damage(path: Path, out: Path, block: int, factor: float, *, stale_digests: bool = False) -> list[str]:
    """Write the damaged copy. Returns the names of the tensors that were multiplied."""
    checkpoint = open_causal_lm(path)
    damaged = scaled_tensors(checkpoint, block)

    def changed(name: str) -> Tensor:
        tensor = checkpoint.tensor(name)
        return (tensor.float() * factor).to(tensor.dtype) if name in damaged else tensor

    pairs = [(TensorSpec(name, info.dtype, info.shape), changed(name)) for name, info in checkpoint.tensors.items()]
    extra = {RECORD: (path / RECORD).read_text(encoding="utf-8")} if (path / RECORD).is_file() else {}
    save_checkpoint(out, checkpoint.config, pairs, source=path, extra=extra)
    if stale_digests:
        shutil.copyfile(path / DIGESTS, out / DIGESTS)
    return damaged


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the damaged copy.")
@click.option("--block", type=click.IntRange(0), default=12, show_default=True, help="Block to damage, from 0.")
@click.option("--factor", type=float, default=1.05, show_default=True, help="Factor for the block's scales.")
@click.option("--stale-digests", is_flag=True, help="Keep the digests of CHECKPOINT.")
def main(checkpoint: Path, out: Path, block: int, factor: float, stale_digests: bool) -> None:
    names = damage(checkpoint, out, block, factor, stale_digests=stale_digests)
    emit({"out": str(out), "tensors": len(names), "first": names[0], "factor": factor}, as_json=False)


if __name__ == "__main__":
    main()

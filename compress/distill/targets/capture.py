"""capture_teacher(): fill a cache with what a teacher says of every token that counts.

Shard after shard, in any order, by as many processes as there are: rank r of n writes shards r, r + n, … What is
there and whole is not made again, so an interrupted capture goes on where it stopped.
"""

import hashlib
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calibration.windows import Windows
from compress.checkpoint.load import open_causal_lm, template_digest, tokenizer_digest
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint
from compress.checkpoint.record import tensor_digest
from compress.core.device import rank_device
from compress.core.errors import QCompressError
from compress.core.report import Report, Row, silent
from compress.distill.config import CaptureConfig
from compress.distill.model import Model, micro_batch, open_model, working_dtype
from compress.distill.targets.cache import (
    Manifest,
    discard_shards,
    open_folder,
    read_shard,
    window_digests,
    windows_digest,
    write_shard,
)
from compress.distill.targets.codecs import Codec, Parts, concatenate, make_codec
from compress.distill.text.packing import Batch, as_batch, check_packing
from compress.distill.text.windows import counting_windows, find_start
from compress.losses import next_tokens


def capture_teacher(
    teacher: PathOrCheckpoint,
    out: Path,
    settings: CaptureConfig,
    *,
    rank: int = 0,
    ranks: int = 1,
    restart: bool = False,
    report: Report = silent,
) -> Row:
    """Write this rank's shards of the teacher's cache at `out`; returns the summary row.

    QCompressError for bad input, for a directory that holds another cache, and for a full disk: what is whole by then
    is kept, and the same command goes on.
    """
    started = time.perf_counter()
    if not 0 <= rank < ranks:
        raise QCompressError(f"rank {rank} of {ranks}: ranks count from 0 to {ranks - 1}")
    teacher = open_causal_lm(teacher)
    if restart:
        discard_shards(out, ranks)
    tokenizer, device = teacher.tokenizer, rank_device(settings.device, rank)
    model = open_model(teacher, working_dtype(device), device)
    check_packing(model, str(teacher), settings.packing, settings.seq_len)
    windows, data = read_windows(settings, tokenizer, model)
    manifest = describe(teacher, model, windows, data, settings)
    codec = make_codec(manifest.codec)
    check_disk(out, windows, codec, manifest.width)
    manifest = open_folder(out, manifest)
    mine = range(rank, len(manifest.files), ranks)
    for done, index in enumerate(mine, 1):
        fill_shard(out, manifest, index, model, windows, codec)
        report({"shard": f"{done}/{len(mine)}", "seconds": round(time.perf_counter() - started, 1)})
    tokens = sum(int(windows.mask[part, 1:].sum()) for part in (shard_slice(manifest, index) for index in mine))
    size = sum((out / manifest.files[index]).stat().st_size for index in mine)
    row = {"out": str(out), "codec": settings.codec, "biased": codec.biased, "tokens": tokens, "bytes": size}
    return row | {"bytes_per_token": size / max(tokens, 1), "seconds": round(time.perf_counter() - started, 1)}


def read_windows(settings: CaptureConfig, tokenizer: Any, model: Model) -> tuple[Windows, Row]:
    """The windows, and their manifest with how they begin."""
    size = {"seq_len": settings.seq_len, "seed": settings.seed}
    start = find_start(settings.text, tokenizer, model.model, settings.samples, size)
    windows = counting_windows(settings.text, tokenizer, settings.samples, size, start, settings.packing)
    return windows, windows.manifest | {"start": asdict(start)}


def describe(teacher: Checkpoint, model: Model, windows: Windows, data: Row, settings: CaptureConfig) -> Manifest:
    """The manifest: everything that the targets follow from. ValueError for a codec's impossible numbers."""
    config, tokenizer = model.model.config, teacher.tokenizer
    dtype = str(teacher.config.get("dtype") or "float16").removeprefix("torch.")
    vocab = min(config.vocab_size, max(tokenizer.get_vocab().values()) + 1)
    head = model.model.get_output_embeddings().weight
    codec = make_codec(settings.codec_settings(vocab, dtype))
    return Manifest(
        teacher=teacher.digest,
        head=f"sha256:{tensor_digest(head.to(getattr(torch, dtype)))}",
        tokenizer=tokenizer_digest(tokenizer),
        chat_template=template_digest(tokenizer),
        codec={"name": settings.codec, **asdict(codec)},  # type: ignore[call-overload]
        data=data,
        windows=windows_digest(windows),
        width=head.shape[1],
        shard_windows=settings.shard_windows,
    )


def check_disk(out: Path, windows: Windows, codec: Codec, width: int) -> None:
    """QCompressError, before the work, when the disk cannot hold what is still to come."""
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    there = sum(file.stat().st_size for file in out.glob("targets-*")) if out.is_dir() else 0
    needed = int(windows.mask[:, 1:].sum()) * codec.bytes_per_token(width) - there
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise QCompressError(
            f"{out}: needs {needed:,} bytes more, {folder} has {free:,} free; make room, or use a codec of fewer bytes"
        )


def shard_slice(manifest: Manifest, index: int) -> slice:
    """The windows of a shard."""
    return slice(index * manifest.shard_windows, (index + 1) * manifest.shard_windows)


def fill_shard(out: Path, manifest: Manifest, index: int, model: Model, windows: Windows, codec: Codec) -> None:
    """Write a shard, unless it is there and whole. QCompressError when the disk is full."""
    path = out / manifest.files[index]
    if path.is_file():
        read_shard(path, manifest)
        return
    part = shard_slice(manifest, index)
    first, batch = part.start, as_batch(windows).rows(part)
    ids = batch.ids
    rows = encode_windows(model, batch, codec, uniform_numbers(ids, first, int(manifest.data["seed"])))
    tensors = {f"codec.{name}": tensor for name, tensor in rows.items()}
    tensors["window"] = torch.arange(first, first + len(ids))
    tensors["ids"], tensors["ends"] = window_digests(ids), batch.mask[:, 1:].sum(1).cumsum(0)
    write_shard(out, manifest, index, tensors)


@torch.no_grad()
def encode_windows(model: Model, batch: Batch, codec: Codec, uniform: Tensor) -> Parts:
    """The codec's rows of all tokens that count, windows one after the other; `uniform` as (windows, seq_len - 1)."""
    device, parts = model.model.device, []
    micro = micro_batch(batch.ids.shape[1], device)
    for some, numbers in zip(batch.split(micro), uniform.split(micro), strict=True):
        there = some.to(device)
        side = model.side(there.ids, there.documents)
        _, kept = next_tokens(some.ids, some.mask)
        parts.append(codec.encode(side._replace(hidden=side.hidden[kept.to(device)]), numbers[kept]))
    return concatenate(parts)


def uniform_numbers(ids: Tensor, first: int, seed: int) -> Tensor:
    """(windows, seq_len - 1) float64 from 0 to 1 that follow from seed, a window's number and its ids alone."""
    rows = []
    for place, row in enumerate(window_digests(ids), first):
        name = hashlib.sha256(f"{seed} {place} ".encode() + row.numpy().tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(name[:7], "little"))
        rows.append(torch.rand(ids.shape[1] - 1, generator=generator, dtype=torch.float64))
    return torch.stack(rows)

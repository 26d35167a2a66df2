"""capture_teacher(): write a cache with a teacher's targets for every unmasked token.

With n processes, rank r writes the shards r, r + n, r + 2n, … An interrupted capture keeps its complete shards and
continues with the next one.
"""

import hashlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calibration.windows import Windows
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.load import open_for_text, template_digest, tokenizer_digest
from compress.checkpoint.read import Checkpoint, PathOrCheckpoint
from compress.checkpoint.record import tensor_digest
from compress.core.atomic import free_space
from compress.core.device import rank_device
from compress.core.errors import QCompressError
from compress.core.interrupt import RESUME, on_interrupt
from compress.core.lock import output_lock
from compress.core.report import Report, Row, silent
from compress.core.units import format_bytes
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
    """Write this rank's shards to the cache `out`; returns the summary row.

    Raises QCompressError if an input is bad, if `out` holds a cache with other settings, or if the disk is full.
    Complete shards stay; the same call then continues.
    """
    if not 0 <= rank < ranks:
        raise QCompressError(f"rank {rank} of {ranks}: ranks count from 0 to {ranks - 1}")
    with output_lock(out, rank=rank, ranks=ranks), on_interrupt(lambda: kept(out)):
        return write_cache(open_for_text(teacher), out, settings, rank, ranks, restart, report)


def kept(out: Path) -> str | None:
    """A line about the work that is kept after an interrupt, or None if no work is kept."""
    return f"complete shards are kept in {out}; {RESUME}" if any(out.glob("targets-*.safetensors")) else None


def write_cache(
    teacher: Checkpoint, out: Path, settings: CaptureConfig, rank: int, ranks: int, restart: bool, report: Report
) -> Row:
    """Write the missing shards of this rank; returns the summary row."""
    started = time.perf_counter()
    if restart:
        discard_shards(out, ranks)
    tokenizer, device = teacher.tokenizer, rank_device(settings.device, rank)
    report({"loads": teacher.path.name})
    model = open_model(teacher, working_dtype(teacher, device), device)
    check_packing(model, str(teacher), settings.packing, settings.seq_len)
    windows, data = read_windows(settings, tokenizer, model)
    manifest = make_manifest(teacher, model, windows, data, settings)
    codec = make_codec(manifest.codec)
    needed = cache_bytes(windows, codec, manifest.width)
    check_disk(out, needed)
    manifest = open_folder(out, manifest)
    shards = range(rank, len(manifest.files), ranks)
    report({"windows": len(windows.ids), "bytes": needed, "shards": len(manifest.files)})
    meter = WindowMeter(sum(len(windows.ids[shard_slice(manifest, index)]) for index in shards), report)
    for index in shards:
        fill_shard(out, manifest, index, model, windows, codec, meter)
    tokens = sum(int(windows.mask[part, 1:].sum()) for part in (shard_slice(manifest, index) for index in shards))
    size = sum((out / manifest.files[index]).stat().st_size for index in shards)
    row = {"out": str(out), "codec": settings.codec, "biased": codec.biased, "tokens_counted": tokens, "bytes": size}
    return row | {"bytes_per_token": size / max(tokens, 1), "seconds": round(time.perf_counter() - started, 1)}


def read_windows(settings: CaptureConfig, tokenizer: Any, model: Model) -> tuple[Windows, Row]:
    """The windows, and a description of their text that includes the start token."""
    size = {"seq_len": settings.seq_len, "seed": settings.seed}
    start = find_start(settings.text, tokenizer, model.model, settings.samples, size)
    windows = counting_windows(settings.text, tokenizer, settings.samples, size, start, settings.packing)
    return windows, windows.manifest | {"start": asdict(start)}


def make_manifest(teacher: Checkpoint, model: Model, windows: Windows, data: Row, settings: CaptureConfig) -> Manifest:
    """The manifest of the cache. Raises ValueError if the codec's `top_k` or `draws` is out of range."""
    config, tokenizer = model.model.config, teacher.tokenizer
    dtype = str(teacher.config.get("dtype") or "float16").removeprefix("torch.")
    vocab = min(config.vocab_size, max(tokenizer.get_vocab().values()) + 1)
    head = stored_head(teacher, model)
    codec = make_codec(settings.codec_settings(vocab, dtype))
    return Manifest(
        teacher=teacher.digest,
        head=f"sha256:{tensor_digest(head.to(getattr(torch, dtype)))}",  # the same on every device
        tokenizer=tokenizer_digest(tokenizer),
        chat_template=template_digest(tokenizer),
        codec={"name": settings.codec, **asdict(codec)},  # type: ignore[call-overload]
        data=data,
        windows=windows_digest(windows),
        width=head.shape[1],
        shard_windows=settings.shard_windows,
    )


def stored_head(teacher: Checkpoint, model: Model) -> Tensor:
    """The weight of the output head as the checkpoint stores it. A device may run the model in another dtype."""
    weight = model.model.get_output_embeddings().weight
    return weight_reader(teacher)(next(name for name, one in model.model.named_parameters() if one is weight))


class WindowMeter:
    """Reports how many of `total` windows are stored."""

    def __init__(self, total: int, report: Report) -> None:
        self.total, self.report, self.done = total, report, 0
        self.add(0)

    def add(self, windows: int) -> None:
        """Count more windows as stored."""
        self.done += windows
        self.report({"windows": f"{self.done}/{self.total}"})


def cache_bytes(windows: Windows, codec: Codec, width: int) -> int:
    """The expected size of the whole cache in bytes."""
    return int(windows.mask[:, 1:].sum()) * codec.bytes_per_token(width)


def check_disk(out: Path, needed: int) -> None:
    """Raises QCompressError if the disk has too little room for the part of `needed` bytes that is not yet written."""
    missing = needed - (sum(file.stat().st_size for file in out.glob("targets-*")) if out.is_dir() else 0)
    folder, free = free_space(out)
    if free < missing:
        sizes = f"{format_bytes(missing, short=False)}, but {folder} has {format_bytes(free, short=False)} free"
        raise QCompressError(f"{out}: the cache needs {sizes}; make room, or use --codec hybrid")


def shard_slice(manifest: Manifest, index: int) -> slice:
    """The range of window numbers that shard `index` contains."""
    return slice(index * manifest.shard_windows, (index + 1) * manifest.shard_windows)


def fill_shard(
    out: Path, manifest: Manifest, index: int, model: Model, windows: Windows, codec: Codec, meter: WindowMeter
) -> None:
    """Write a shard, or verify it if the file exists. `meter` counts its windows.

    Raises QCompressError if the disk is full, or if an existing shard is damaged.
    """
    path = out / manifest.files[index]
    if path.is_file():
        read_shard(path, manifest)
        meter.add(len(windows.ids[shard_slice(manifest, index)]))
        return
    part = shard_slice(manifest, index)
    first, batch = part.start, as_batch(windows).rows(part)
    ids = batch.ids
    rows = encode_windows(model, batch, codec, uniform_numbers(ids, first, int(manifest.data["seed"])), meter)
    tensors = {f"codec.{name}": tensor for name, tensor in rows.items()}
    tensors["window"] = torch.arange(first, first + len(ids))
    tensors["ids"], tensors["ends"] = window_digests(ids), batch.mask[:, 1:].sum(1).cumsum(0)
    write_shard(out, manifest, index, tensors)


@torch.no_grad()
def encode_windows(model: Model, batch: Batch, codec: Codec, uniform: Tensor, meter: WindowMeter) -> Parts:
    """The codec's tensors, with one row per unmasked token, in the order of the windows.

    `uniform` holds the random numbers of the codec, (windows, seq_len - 1).
    """
    device, parts = model.model.device, []
    micro = micro_batch(batch.ids.shape[1], device)
    for part, numbers in zip(batch.split(micro), uniform.split(micro), strict=True):
        inputs = part.to(device)
        side = model.side(inputs.ids, inputs.documents)
        _, kept = next_tokens(part.ids, part.mask)
        parts.append(codec.encode(side._replace(hidden=side.hidden[kept.to(device)]), numbers[kept]))
        meter.add(len(part.ids))
    return concatenate(parts)


def uniform_numbers(ids: Tensor, first: int, seed: int) -> Tensor:
    """Random numbers in [0, 1), (windows, seq_len - 1) float64.

    A window's numbers depend only on the seed, on the window's number and on its token ids. `first` is the number of
    the first window.
    """
    rows = []
    for number, row in enumerate(window_digests(ids), first):
        digest = hashlib.sha256(f"{seed} {number} ".encode() + row.numpy().tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        rows.append(torch.rand(ids.shape[1] - 1, generator=generator, dtype=torch.float64))
    return torch.stack(rows)

"""Teacher targets on disk: a manifest of all inputs, and shards with checksums.

    manifest.json                         teacher, tokenizer, chat template, text, codec: digests and settings
    targets-00003-of-00016.safetensors    `shard_windows` windows each, written atomically

A shard holds `window` (window numbers), `ids` (digests of the windows), `ends` (end of each window's rows), the codec's
tensors with a row per unmasked token, the digest of its manifest, and a checksum. Its bytes depend on the manifest and
its number only, so an interrupted capture ends in the same bytes.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.windows import Windows
from compress.checkpoint.read import read_header, read_json
from compress.checkpoint.record import tensor_digest
from compress.checkpoint.write import TensorSpec, plan_shard
from compress.core.atomic import file_errors, write_atomic
from compress.core.errors import QCompressError
from compress.distill.config import DistillConfig
from compress.distill.targets.codecs import CODECS, Codec, Parts, make_codec

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """The inputs of the targets. `teacher`, `head`, `tokenizer`, `chat_template` and `windows` are digests.

    `data` is the manifest of the windows, with their start token; `windows` covers ids, mask and documents; `width` is
    the teacher's.
    """

    teacher: str
    head: str
    tokenizer: str
    chat_template: str
    codec: dict[str, Any]
    data: dict[str, Any]
    windows: str
    width: int
    shard_windows: int
    format: int = FORMAT

    def text(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @cached_property
    def digest(self) -> Tensor:
        """sha256 of the manifest, (32,) uint8."""
        return digest_bytes(self.text().encode())

    @property
    def files(self) -> list[str]:
        """The names of all shards."""
        count = -(-int(self.data["n_samples"]) // self.shard_windows)
        return [f"targets-{i:05d}-of-{count:05d}.safetensors" for i in range(count)]

    def facts(self) -> dict[str, Any]:
        """Everything that a cache and a run must share, under the names of the options."""
        data = {key: self.data[key] for key in ("seq_len", "seed", "start_token")}
        data["samples"] = self.data["n_samples"]
        data["packing"] = self.data.get("packing", "full")  # caches without the key have this packing
        sources = [source["digest"] for source in self.data["sources"]]
        named = {"codec": self.codec["name"], **{k: v for k, v in self.codec.items() if k != "name"}}
        rest = {"windows": self.windows, "shard_windows": self.shard_windows, "format": self.format}
        digests = {key: getattr(self, key) for key in ("teacher", "head", "tokenizer", "chat_template")}
        return {**digests, **named, **data, "text": sources, **rest}


def differing(stored: dict[str, Any], current: dict[str, Any]) -> str:
    """The first value that differs from the stored one, as "name: A stored, B now"; "" if all are equal."""
    for name, value in current.items():
        if stored.get(name) != value:
            return f"{name}: {short(stored.get(name))} stored, {short(value)} now"
    return ""


def short(value: Any) -> Any:
    """A value for messages; digests are shortened."""
    if isinstance(value, list):
        return ", ".join(str(short(one)) for one in value)
    return f"{value[:19]}…" if str(value).startswith("sha256:") else value


def windows_digest(windows: Windows) -> str:
    """sha256 over ids, mask and, if present, documents."""
    documents = [] if windows.documents is None else [windows.documents]
    return f"sha256:{tensor_digest(torch.cat([windows.ids, windows.mask.long(), *documents], 1))}"


def digest_bytes(data: bytes) -> Tensor:
    return torch.tensor(list(hashlib.sha256(data).digest()), dtype=torch.uint8)


def window_digests(ids: Tensor) -> Tensor:
    """(windows, seq_len) ids -> (windows, 32) uint8, a digest of each."""
    return torch.stack([digest_bytes(row.numpy().astype("<i8").tobytes()) for row in ids.cpu()])


def checksum(tensors: Parts) -> Tensor:
    """sha256 over names, dtypes, shapes and bytes, (32,) uint8; without `checksum` itself."""
    names = sorted(tensors.keys() - {"checksum"})
    lines = [
        f"{name} {tensors[name].dtype} {list(tensors[name].shape)} {tensor_digest(tensors[name])}" for name in names
    ]
    return digest_bytes("\n".join(lines).encode())


def discard_shards(out: Path, processes: int) -> None:
    """Remove an interrupted capture from `out`. A complete cache and a directory without a manifest stay.

    QCompressError when several processes run: one would remove the shards that another has just written.
    """
    if processes > 1:
        raise QCompressError(f"{out}: --restart works in one process only; remove the directory, then start again")
    if not (out / MANIFEST).is_file() or all((out / name).is_file() for name in read_manifest(out).files):
        return
    for path in [*out.glob("targets-*.safetensors"), *out.glob(".targets-*.partial"), out / MANIFEST]:
        path.unlink()


def open_folder(out: Path, manifest: Manifest) -> Manifest:
    """Create the directory and its manifest, or accept an equal one; returns the manifest on disk.

    Measured values, such as those of the start token, may differ in their last digits between machines. QCompressError
    names any other difference.
    """
    out.mkdir(parents=True, exist_ok=True)
    if (out / MANIFEST).is_file():
        difference = differing(read_manifest(out).facts(), manifest.facts())
        if difference:
            raise QCompressError(f"{out}: is a cache of another {difference}; give another --out, or --restart")
        return read_manifest(out)
    other_files = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    if other_files:
        raise QCompressError(f"{out}: contains {other_files[0]} but no {MANIFEST}; give a new directory")
    with file_errors(out / MANIFEST):
        write_atomic(out / MANIFEST, manifest.text().encode())
    return read_manifest(out)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a cache. QCompressError for another format or an unknown codec."""
    if not (path / MANIFEST).is_file():
        raise QCompressError(f"{path}: has no {MANIFEST}; give a directory written by `qcompress capture`")
    value = read_json(path / MANIFEST)
    if value.keys() != {field.name for field in fields(Manifest)} or value["format"] != FORMAT:
        raise QCompressError(f"{path / MANIFEST}: is not a manifest of format {FORMAT}; capture again")
    if value["codec"].get("name") not in CODECS:
        raise QCompressError(
            f"{path / MANIFEST}: codec {value['codec'].get('name')} is not supported; use {', '.join(CODECS)}"
        )
    return Manifest(**value)


def write_shard(out: Path, manifest: Manifest, index: int, tensors: Parts) -> None:
    """Write shard `index` with the manifest's digest and a checksum; leftovers of a killed run are removed."""
    tensors = tensors | {"manifest": manifest.digest}
    tensors["checksum"] = checksum(tensors)
    specs = [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    shard = plan_shard(manifest.files[index], specs)
    ordered = sorted(tensors, key=lambda name: shard.offsets[name])
    rows = (tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data for name in ordered)
    for stale in out.glob(f".{shard.file}.*.partial"):
        stale.unlink()
    with file_errors(out / shard.file):
        write_atomic(out / shard.file, shard.header, *rows)


def read_shard(path: Path, manifest: Manifest) -> Parts:
    """The tensors of a shard, memory-mapped and verified. QCompressError when their bytes have changed."""
    bytes_ = np.memmap(path, np.uint8, "c")  # private: pages may be written to, the file never is
    tensors = {}
    for name, info in read_header(path).items():
        flat = torch.from_numpy(bytes_[info.offset : info.offset + info.bytes])
        tensors[name] = (
            flat.view(info.dtype).view(info.shape) if info.bytes else torch.empty(info.shape, dtype=info.dtype)
        )
    if not torch.equal(tensors.get("manifest", torch.empty(0)), manifest.digest):
        raise QCompressError(f"{path}: belongs to another {MANIFEST}; remove it and capture again")
    if not torch.equal(tensors.get("checksum", torch.empty(0)), checksum(tensors)):
        raise QCompressError(f"{path}: checksum mismatch; remove the file and capture again")
    return tensors


class Cache:
    """A complete cache: `manifest`, `codec`, and the rows of every window. QCompressError when shards are missing."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.codec: Codec = make_codec(self.manifest.codec)
        missing = [name for name in self.manifest.files if not (self.path / name).is_file()]
        if missing:
            raise QCompressError(
                f"{path}: {len(missing)} of {len(self.manifest.files)} shards are missing, first {missing[0]}; run "
                "the same `qcompress capture` again to complete it"
            )
        self._shards: dict[int, Parts] = {}

    def check(self, **facts: Any) -> None:
        """QCompressError that names the first of these facts that differs from the cache's."""
        difference = differing(self.manifest.facts(), facts)
        if difference:
            raise QCompressError(
                f"{self.path}: differs from this run in {difference}; use the same setting, or capture again"
            )

    def shard(self, index: int) -> Parts:
        """The tensors of a shard, verified when first read."""
        if index not in self._shards:
            self._shards[index] = read_shard(self.path / self.manifest.files[index], self.manifest)
        return self._shards[index]

    def rows(self, window: int, digest: Tensor) -> Parts:
        """The codec's tensors of one window. QCompressError when its ids differ from the captured ones."""
        index, place = divmod(window, self.manifest.shard_windows)
        shard = self.shard(index)
        if not torch.equal(shard["ids"][place], digest):
            raise QCompressError(f"{self.path}: window {window} has other tokens than this run; capture again")
        start, end = int(shard["ends"][place - 1]) if place else 0, int(shard["ends"][place])
        return {name: shard[f"codec.{name}"][start:end] for name in codec_names(shard)}


def codec_names(shard: Parts) -> Sequence[str]:
    return [name.removeprefix("codec.") for name in shard if name.startswith("codec.")]


def settings_cache(settings: DistillConfig) -> Cache:
    """The cache of the settings. QCompressError if its manifest differs from them, or its codec cannot serve them."""
    cache = Cache(str(settings.cache))
    cache.check(seq_len=settings.seq_len, seed=settings.seed, packing=settings.packing)
    if not cache.codec.sparse:
        return cache
    if settings.divergence != "kl":
        raise QCompressError(
            f"{cache.path}: --divergence {settings.divergence} needs all probabilities, codec "
            f"{cache.manifest.codec['name']} stores a few; use --divergence kl, or capture with --codec hidden"
        )
    cache.check(temperature=settings.temperature)
    return cache

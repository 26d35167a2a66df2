"""The manifest of a cache, and its shards as bytes: what can be read and verified without torch."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compress.checkpoint.read import read_header, read_json
from compress.core.dtypes import Dtype
from compress.core.errors import QCompressError
from compress.distill.targets.codec_settings import SETTINGS

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """All values that determine the targets. `teacher`, `head`, `tokenizer`, `chat_template` and `windows` are digests.

    `windows` covers token ids, masks and documents. `data` describes the text and the start token. `width` is the size
    of the teacher's hidden states.
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

    @property
    def digest(self) -> bytes:
        """The sha256 of the manifest's text."""
        return hashlib.sha256(self.text().encode()).digest()

    @property
    def files(self) -> list[str]:
        """The file names of all shards, in order."""
        count = -(-int(self.data["n_samples"]) // self.shard_windows)
        return [f"targets-{i:05d}-of-{count:05d}.safetensors" for i in range(count)]

    def facts(self) -> dict[str, Any]:
        """The values that a cache and a training run must share, under the names of the options."""
        data = {key: self.data[key] for key in ("seq_len", "seed", "start_token")}
        data["samples"] = self.data["n_samples"]
        data["packing"] = self.data.get("packing", "full")  # a cache without this key was captured with "full"
        sources = [source["digest"] for source in self.data["sources"]]
        named = {"codec": self.codec["name"], **{k: v for k, v in self.codec.items() if k != "name"}}
        rest = {"windows": self.windows, "shard_windows": self.shard_windows, "format": self.format}
        digests = {key: getattr(self, key) for key in ("teacher", "head", "tokenizer", "chat_template")}
        return {**digests, **named, **data, "text": sources, **rest}


def differing(stored: dict[str, Any], current: dict[str, Any]) -> str:
    """The first difference, as "name: A stored, B now". Returns "" if `stored` has all values of `current`."""
    for name, value in current.items():
        if stored.get(name) != value:
            return f"{name}: {short(stored.get(name))} stored, {short(value)} now"
    return ""


def short(value: Any) -> Any:
    """A value as text for a message. A digest is shortened."""
    if isinstance(value, list):
        return ", ".join(str(short(one)) for one in value)
    return f"{value[:19]}…" if str(value).startswith("sha256:") else value


def read_manifest(path: Path) -> Manifest:
    """The manifest of a cache. Raises QCompressError if its format or its codec is unknown."""
    if not (path / MANIFEST).is_file():
        raise QCompressError(f"{path}: {MANIFEST} is missing; give a directory written by `qcompress capture`")
    value = read_json(path / MANIFEST)
    if value.keys() != {field.name for field in fields(Manifest)} or value["format"] != FORMAT:
        raise QCompressError(f"{path / MANIFEST}: the manifest does not have format {FORMAT}; capture again")
    if value["codec"].get("name") not in SETTINGS:
        raise QCompressError(
            f"{path / MANIFEST}: codec {value['codec'].get('name')} is not supported; use {', '.join(SETTINGS)}"
        )
    return Manifest(**value)


class StoredPart(NamedTuple):
    """A tensor of a shard: dtype, shape, and its bytes, (bytes,) uint8, memory-mapped copy on write."""

    dtype: Dtype
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    def array(self) -> NDArray[Any]:
        """The tensor as a NumPy array. Raises TypeError for bfloat16, which NumPy lacks."""
        return self.data.view(self.dtype.value).reshape(self.shape)


def checksum(parts: Iterable[tuple[str, Dtype, tuple[int, ...], str]]) -> bytes:
    """The sha256 of names, dtypes, shapes and sha256 of all tensors. The tensor `checksum` is left out."""
    rows = sorted(part for part in parts if part[0] != "checksum")
    lines = [f"{name} torch.{dtype} {list(shape)} {digest}" for name, dtype, shape, digest in rows]
    return hashlib.sha256("\n".join(lines).encode()).digest()


def read_parts(path: Path, manifest: Manifest) -> dict[str, StoredPart]:
    """The tensors of a shard by name. Raises QCompressError if the bytes have changed."""
    data = np.memmap(path, np.uint8, "c")  # copy on write: changes stay in memory
    parts = {
        name: StoredPart(info.dtype, info.shape, data[info.offset : info.offset + info.bytes])
        for name, info in read_header(path).items()
    }
    if "manifest" not in parts or parts["manifest"].data.tobytes() != manifest.digest:
        raise QCompressError(f"{path}: this shard belongs to another {MANIFEST}; remove the file and capture again")
    digests = [(name, *part[:2], hashlib.sha256(part.data.data).hexdigest()) for name, part in parts.items()]
    if "checksum" not in parts or parts["checksum"].data.tobytes() != checksum(digests):
        raise QCompressError(f"{path}: checksum mismatch; remove the file and capture again")
    return parts

"""Read a Hugging Face checkpoint directory: config.json and safetensors shards, nothing executed, nothing outside it.

Headers are read and checked when a `Checkpoint` is made; tensors one at a time, on demand, straight into memory.
The safetensors layout: 8 bytes of header length, a JSON header, the data (https://github.com/huggingface/safetensors).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.checkpoint.header_rules import check_contiguous, is_entry, parse_header
from compress.core.errors import QCompressError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"
RECORD = "qcompress.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: file, first byte, dtype, shape."""

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class Checkpoint:
    """A checkpoint directory, opened once: pass this object on instead of the path.

    `config` and `tensors` (headers by name) are read when it is opened; `tokenizer`, `digest` and `record` at first
    use. All are kept. QCompressError for a file that is missing, cut short, or outside the directory.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_dir():
            raise QCompressError(f"{path}: no such directory; give a folder with config.json and *.safetensors")
        self.config: dict[str, Any] = read_json(self.path / "config.json")
        self.files = weight_files(self.path)
        self.tensors: dict[str, TensorInfo] = {}
        for file in self.files:
            for name, info in read_header(file).items():
                if name in self.tensors:
                    raise QCompressError(f"{file}: {name} is also in {self.tensors[name].file.name}; keep one of them")
                self.tensors[name] = info
        self._check_index()

    def __str__(self) -> str:
        return str(self.path)

    @property
    def quantization(self) -> dict[str, Any] | None:
        """The quantization_config of config.json; None for an unquantized checkpoint."""
        return self.config.get("quantization_config")

    @cached_property
    def bytes(self) -> int:
        """Size of all safetensors files in bytes, headers included."""
        return sum(file.stat().st_size for file in self.files)

    @cached_property
    def digest(self) -> str:
        """sha256 over config.json and every weight file, as "sha256:HEX". Reads all weights, once."""
        return files_digest([self.path / "config.json", *self.files])

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of qcompress.json: how the checkpoint was made. {} for a checkpoint without one."""
        file = self.path / RECORD
        return read_json(file) if file.is_file() else {}

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of this directory. QCompressError for a directory without tokenizer files."""
        if not any((self.path / name).is_file() for name in TOKENIZER_FILES):
            raise QCompressError(f"{self.path}: has no tokenizer.json; copy the model's tokenizer files there")
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.path)

    def tensor(self, name: str) -> Tensor:
        """The tensor as stored. QCompressError for an unknown name."""
        if name not in self.tensors:
            raise QCompressError(f"{self.path}: has no tensor {name}")
        return read_tensor(name, self.tensors[name])

    def _check_index(self) -> None:
        index = self.path / INDEX
        if not index.exists():
            return
        listed = read_json(index).get("weight_map", {})
        for name, file in listed.items():
            if name not in self.tensors:
                raise QCompressError(f"{index}: lists {name}, but {file} does not hold it; fetch the checkpoint again")
            if self.tensors[name].file.name != file:
                raise QCompressError(
                    f"{index}: places {name} in {file}, but it is in {self.tensors[name].file.name}; correct the index"
                )


PathOrCheckpoint = str | Path | Checkpoint


def open_checkpoint(source: PathOrCheckpoint) -> Checkpoint:
    """The checkpoint at a path. A `Checkpoint` is returned unchanged, so nothing is opened twice."""
    return source if isinstance(source, Checkpoint) else Checkpoint(source)


def files_digest(files: Sequence[Path]) -> str:
    """sha256 over the sha256 of each file in turn, as "sha256:HEX"."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{total.hexdigest()}"


def read_tensor(name: str, info: TensorInfo) -> Tensor:
    """The tensor at its place in its file. QCompressError when the file ends too early."""
    tensor = torch.empty(info.shape, dtype=info.dtype)
    if info.bytes:
        with info.file.open("rb") as file:
            file.seek(info.offset)
            got = file.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data)  # type: ignore[attr-defined]
        if got != info.bytes:
            raise QCompressError(f"{info.file}: {name} has {got} of {info.bytes} bytes; fetch the file again")
    return tensor


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. QCompressError when it is missing or malformed, with the line."""
    if not path.is_file():
        raise QCompressError(f"{path}: missing; {path.parent} is no Hugging Face checkpoint; give the folder of one")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise QCompressError(f"{path}: not valid JSON ({error}); fetch the file again") from None
    if not isinstance(value, dict):
        raise QCompressError(f"{path}: holds a {type(value).__name__}, not an object; fetch the file again")
    return value


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those of its index, else all. Every one inside the directory."""
    index = path / INDEX
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise QCompressError(f"{index}: has no weight_map; fetch the file again")
        if not all(isinstance(name, str) for name in weight_map.values()):
            raise QCompressError(f"{index}: its weight_map names no files; fetch the file again")
        files = [path / name for name in sorted(set(weight_map.values()))]
    else:
        files = sorted(path.glob("*.safetensors"))
    if not files:
        pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
        if pickles:
            raise QCompressError(f"{path / pickles[0]}: pickled weights can run code; save them as safetensors")
        raise QCompressError(f"{path}: has no *.safetensors file; give a directory that holds a model")
    for file in files:
        inside(file, path)
        if not file.is_file():
            raise QCompressError(f"{file}: missing, though {INDEX} lists it; fetch the checkpoint again")
    return files


def inside(file: Path, folder: Path) -> None:
    """Refuse a path that leads out of `folder`. A link to elsewhere is followed only where a hub cache laid it."""
    if file.parent.resolve() != folder.resolve() or file.name in ("", ".", ".."):
        raise QCompressError(f"{folder / INDEX}: {file} leads outside {folder}; do not trust this checkpoint")
    if file.is_symlink() and not hub_link(file, folder) and folder.resolve() not in file.resolve().parents:
        raise QCompressError(f"{file}: is a link that leads outside {folder}; copy the file there if you trust it")


def hub_link(file: Path, folder: Path) -> bool:
    """A link …/snapshots/REVISION/file -> …/blobs/HASH, the hub's cache layout."""
    parts = folder.resolve()
    return parts.parent.name == "snapshots" and file.resolve().parent == parts.parent.parent / "blobs"


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Names and places of a safetensors file's tensors, checked against the size of the file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise QCompressError(f"{file}: {size} bytes are too few for its header; fetch the file again")
        header = parse_header(file, stream.read(length))
    infos = {name: tensor_info(file, name, entry, 8 + length) for name, entry in header.items()}
    check_contiguous(file, ((*entry["data_offsets"], name) for name, entry in header.items()), size - 8 - length)
    return infos


def tensor_info(file: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    """The place of a tensor. Raises QCompressError if its header entry is malformed or has the wrong size."""
    if not is_entry(entry) or entry["dtype"] not in DTYPES:
        raise QCompressError(f"{file}: cannot read the header entry of {name}: {str(entry)[:200]}; fetch it again")
    dtype, shape, (start, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    info = TensorInfo(file, data_start + start, dtype, shape)
    if info.bytes != end - start:
        raise QCompressError(f"{file}: {name} {shape} needs {info.bytes} bytes, but has {end - start}; fetch it again")
    return info

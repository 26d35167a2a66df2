"""Read a Hugging Face checkpoint directory: config.json and safetensors files. No code in the directory is run.

Headers are read and checked when a `Checkpoint` is made; tensors one at a time, on demand, straight into memory.
The safetensors layout: 8 bytes of header length, a JSON header, the data (https://github.com/huggingface/safetensors).
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoint.digest import files_digest, small_files_digest
from compress.checkpoint.door.config_values import is_size
from compress.checkpoint.door.fault import refuse
from compress.checkpoint.door.files import (
    CONFIG,
    INDEX,
    LFS,
    RECORD,
    check_folder,
    check_small_files,
    lfs_error,
    read_config_file,
    read_json,
    weight_files,
)
from compress.checkpoint.door.rules import checkpoint_faults
from compress.checkpoint.door.sizes import EMBEDDING
from compress.checkpoint.door.tokenizer import check_tokenizer, load_tokenizer
from compress.checkpoint.header_rules import check_contiguous, is_entry, parse_header
from compress.core.dtypes import Dtype
from compress.core.errors import QCompressError
from compress.model.families import ExpertNames
from compress.model.naming import Naming, find_naming, named_in_model, stacked_parts
from compress.model.wrappers import text_config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

DTYPES = {
    "F64": Dtype.float64,
    "F32": Dtype.float32,
    "F16": Dtype.float16,
    "BF16": Dtype.bfloat16,
    "I64": Dtype.int64,
    "I32": Dtype.int32,
    "I16": Dtype.int16,
    "I8": Dtype.int8,
    "U8": Dtype.uint8,
    "BOOL": Dtype.bool,
    "U16": Dtype.uint16,
    "U32": Dtype.uint32,
    "U64": Dtype.uint64,
    "C64": Dtype.complex64,
    "F8_E4M3": Dtype.float8_e4m3fn,
    "F8_E5M2": Dtype.float8_e5m2,
    "F8_E8M0": Dtype.float8_e8m0fnu,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 32_000_000  # bytes; 90,000 tensors take 10 million
SUB_BYTE = ("F4", "F6_E2M3", "F6_E3M2")  # dtypes of quantized weights that torch has no counterpart of


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: file, first byte, dtype, shape."""

    file: Path
    offset: int
    dtype: Dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class Checkpoint:
    """A checkpoint directory, opened once: pass this object on instead of the path.

    `stored_config` is config.json, and `stored` has the headers by their names in the files. `config` and `tensors` are
    those of the language model, with the names of transformers: they differ for a multimodal model, whose other tensors
    are in `carried`. They are read when it is opened; `tokenizer`, `digest` and `record` at first use. All are kept.
    Raises QCompressError if a file is missing, cut short, not a regular file, or outside the
    directory. Use `open_checkpoint` for a checkpoint to work with: it applies all rules of the door.
    """

    replaced: frozenset[str] = frozenset()  # tensors that `tensor` does not return as stored
    settled = False  # set by `load.settle`: the rules that need the model's code have been applied

    def __init__(self, path: str | Path):
        self.path = Path(path)
        check_folder(self.path)
        check_small_files(self.path)
        self.stored_config: dict[str, Any] = read_config_file(self.path / CONFIG)
        self.files = weight_files(self.path)
        self.stored: dict[str, TensorInfo] = {}
        for file in self.files:
            for name, info in read_header(file).items():
                if name in self.stored:
                    raise QCompressError(f"{file}: {name} is also in {self.stored[name].file.name}; keep one of them")
                self.stored[name] = info
        self._check_index()
        self.naming = find_naming(self.stored_config, self.stored)
        self.config: dict[str, Any] = model_config(self.stored_config, self.naming)
        self.tensors, self.carried = language_model(self.stored, self.naming)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def quantization(self) -> dict[str, Any] | None:
        """The quantization_config of config.json, or None if the checkpoint is not quantized."""
        return self.config.get("quantization_config")

    @cached_property
    def bytes(self) -> int:
        """Size of all safetensors files in bytes, headers included."""
        return sum(file.stat().st_size for file in self.files)

    @cached_property
    def digest(self) -> str:
        """sha256 over config.json and every weight file, as "sha256:HEX". Reads all weights, once."""
        return files_digest(self.digest_files)

    @cached_property
    def small_files_digest(self) -> str:
        """sha256 over the tokenizer, the chat template and generation_config.json, as "sha256:HEX"."""
        return small_files_digest(self.path)

    @property
    def digest_files(self) -> list[Path]:
        """config.json and the weight files: what `digest` covers."""
        return [self.path / CONFIG, *self.files]

    @cached_property
    def record(self) -> dict[str, Any]:
        """The content of qcompress.json: how the checkpoint was made. {} if the file does not exist."""
        file = self.path / RECORD
        return read_json(file) if file.is_file() else {}

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of this directory. Raises QCompressError if it cannot be used."""
        return load_tokenizer(self.path, self.vocabulary_rows)

    def check_tokenizer(self) -> None:
        """Raises QCompressError if `tokenizer` does. Does not import transformers for a familiar tokenizer."""
        if "tokenizer" not in self.__dict__:
            check_tokenizer(self.path, self.vocabulary_rows)

    @property
    def vocabulary_rows(self) -> int | None:
        """The rows of the embedding on disk, or vocab_size if the embedding is packed, or None."""
        rows = [info.shape[0] for name, info in self.tensors.items() if EMBEDDING.search(name) and info.shape]
        size = self.config.get("vocab_size")
        return rows[0] if rows else size if is_size(size) else None

    def tensor(self, name: str) -> "Tensor":
        """The tensor as stored. Raises QCompressError if no tensor has this name."""
        info = self.tensors.get(name) or self.carried.get(name)
        if info is None:
            raise QCompressError(f"{self.path}: no tensor {name}; fetch the checkpoint again")
        return read_tensor(name, info)

    def _check_index(self) -> None:
        index = self.path / INDEX
        if not index.exists():
            return
        listed = read_json(index).get("weight_map", {})
        for name, file in listed.items():
            if name not in self.stored:
                raise QCompressError(f"{index}: lists {name}, which is missing in {file}; fetch the checkpoint again")
            if self.stored[name].file.name != file:
                raise QCompressError(
                    f"{index}: places {name} in {file}, but it is in {self.stored[name].file.name}; correct the index"
                )


PathOrCheckpoint = str | Path | Checkpoint
Tensors = dict[str, TensorInfo]


def model_config(stored: dict[str, Any], naming: Naming) -> dict[str, Any]:
    """The config.json of the language model. Its quantization_config has the names of the model."""
    config = text_config(stored)
    quantization = config.get("quantization_config")
    renamed = naming != Naming(experts=naming.experts) and isinstance(quantization, dict)
    return config | {"quantization_config": named_in_model(quantization, naming)} if renamed else config


def language_model(stored: Tensors, naming: Naming) -> tuple[Tensors, Tensors]:
    """The tensors of the language model by the model's names, and all others by their names in the files.

    A tensor that holds all experts of a block is listed once per expert and linear: each is a range of its bytes.
    """
    tensors: Tensors = {}
    carried: Tensors = {}
    for name, info in stored.items():
        inside = naming.in_model(name)
        if inside is None:
            carried[name] = info
        else:
            tensors |= unstacked(inside, info, naming.experts) or {inside: info}
    return tensors, carried


def unstacked(name: str, info: TensorInfo, experts: ExpertNames | None) -> Tensors:
    """The linears of all experts in one stacked tensor (experts, rows, in). {} for any other tensor."""
    parts = stacked_parts(experts, name) if experts else None
    if experts is None or parts is None or len(info.shape) != 3 or info.shape[1] % len(parts[1]):
        return {}
    block, linears = parts
    shape = (info.shape[1] // len(linears), info.shape[2])
    size = prod(shape) * info.dtype.itemsize
    names = [f"{block}{experts.linear(expert, linear)}" for expert in range(info.shape[0]) for linear in linears]
    return {
        f"{one}.weight": TensorInfo(info.file, info.offset + number * size, info.dtype, shape)
        for number, one in enumerate(names)
    }


def open_checkpoint(source: PathOrCheckpoint) -> Checkpoint:
    """The checkpoint at a path, after all rules of the door that need no model. A `Checkpoint` is returned unchanged.

    Raises QCompressError with the first broken rule.
    """
    if isinstance(source, Checkpoint):
        return source
    checkpoint = Checkpoint(source)
    refuse(checkpoint.path, checkpoint_faults(checkpoint))
    return checkpoint


def read_tensor(name: str, info: TensorInfo) -> "Tensor":
    """Read the tensor that `info` describes. Raises QCompressError if its file ends too early."""
    import torch

    tensor = torch.empty(info.shape, dtype=info.dtype.torch)
    if info.bytes:
        with info.file.open("rb") as file:
            file.seek(info.offset)
            got = file.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data)  # type: ignore[attr-defined]
        if got != info.bytes:
            raise QCompressError(f"{info.file}: {name} has {got} of {info.bytes} bytes; fetch the file again")
    return tensor


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The `TensorInfo` of each tensor in a safetensors file, by name. The entries are checked against the file size."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if LFS.startswith(start) and start:
            raise lfs_error(file)
        length = int.from_bytes(start, "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise QCompressError(f"{file}: {size} bytes are too few for the header; fetch the file again")
        header = parse_header(file, stream.read(length))
    infos = {name: tensor_info(file, name, entry, 8 + length) for name, entry in header.items()}
    check_contiguous(file, ((*entry["data_offsets"], name) for name, entry in header.items()), size - 8 - length)
    return infos


def tensor_info(file: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    """The `TensorInfo` of a header entry. Raises QCompressError if the entry is malformed or has the wrong size."""
    if is_entry(entry) and entry["dtype"] in SUB_BYTE:
        raise QCompressError(f"{file}: {name}: already quantized ({entry['dtype']}); give the 16-bit checkpoint")
    if not is_entry(entry) or entry["dtype"] not in DTYPES:
        raise QCompressError(f"{file}: cannot read the header entry of {name}: {str(entry)[:200]}; fetch it again")
    dtype, shape, (start, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    info = TensorInfo(file, data_start + start, dtype, shape)
    if info.bytes != end - start:
        raise QCompressError(f"{file}: {name} {shape} needs {info.bytes} bytes, but has {end - start}; fetch it again")
    return info

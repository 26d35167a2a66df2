"""`qcompress.json`, the record of how a checkpoint was made, and `qcompress.sha256.json`, the digests of its content.

    config   a digest of every key of config.json, whatever its formatting
    tensors  a digest of the bytes of every tensor, computed before they reach the disk
    shapes   dtype and shape of every tensor, as text
    files    a digest of every published file; of a weight file only its header, since its tensors have digests

So no byte can change unnoticed, and `check` can still tell a reformatted file from a changed value.
"""

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoint.door.files import DIGESTS
from compress.checkpoint.read import MAX_HEADER, read_json
from compress.core.dtypes import Dtype
from compress.core.errors import QCompressError

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("config", "tensors", "shapes", "files")
FIRST_PARTS = ("config", "tensors")  # the parts that checkpoints of the first version have


def record_text(command: str, settings: dict[str, Any], **parts: Any) -> str:
    """The record as JSON text: command, settings, further `parts`, and the versions of the packages."""
    versions = {name: version(name) for name in ("qcompress", "torch", "transformers", "safetensors")}
    versions["python"] = platform.python_version()
    value = {"command": command, "settings": settings, **parts, "digests": PARTS, "versions": versions}
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"


def tensor_bytes(tensor: "Tensor") -> memoryview:
    """A tensor's bytes as stored on disk."""
    import torch

    data: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return data


def tensor_digest(tensor: "Tensor") -> str:
    """sha256 of a tensor's bytes as stored on disk, hexadecimal."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def config_digests(config: dict[str, Any]) -> dict[str, str]:
    """sha256 of every value of config.json by its key; it does not depend on the formatting of the file."""
    texts = {key: json.dumps(value, sort_keys=True, ensure_ascii=False) for key, value in config.items()}
    return {key: hashlib.sha256(text.encode()).hexdigest() for key, text in texts.items()}


def shape_texts(tensors: dict[str, tuple[Dtype, tuple[int, ...]]]) -> dict[str, str]:
    """dtype and shape of every tensor by name, for example "float16 64 128"."""
    return {name: " ".join([dtype, *map(str, shape)]) for name, (dtype, shape) in sorted(tensors.items())}


def published_files(folder: Path) -> dict[str, Path]:
    """Every file below `folder` by its relative name, without the digest file, hidden files and hidden folders."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    visible = {name: path for name, path in files.items() if not any(part[0] == "." for part in name.split("/"))}
    return {name: path for name, path in visible.items() if name != DIGESTS}


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 of every published file by its relative name. For a weight file, only its header is covered."""
    return {name: file_digest(path) for name, path in published_files(folder).items()}


def file_digest(path: Path) -> str:
    """sha256 of a file. For a weight file, only its header is covered."""
    with path.open("rb") as stream:
        if path.suffix != ".safetensors":
            return hashlib.file_digest(stream, "sha256").hexdigest()
        length = stream.read(8)
        return hashlib.sha256(length + stream.read(min(int.from_bytes(length, "little"), MAX_HEADER))).hexdigest()


def write_digests(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, str],
    shapes: dict[str, tuple[Dtype, tuple[int, ...]]],
) -> None:
    """Write the digest file of a complete checkpoint folder. `tensors` maps the names of tensors to their digests."""
    parts = (config_digests(config), dict(sorted(tensors.items())), shape_texts(shapes), file_digests(folder))
    (folder / DIGESTS).write_text(digests_text(dict(zip(PARTS, parts, strict=True))), encoding="utf-8")


def refresh_file_digests(folder: Path) -> None:
    """Compute the digests of all files again, after the record and the model card have changed."""
    digests = read_digests(folder)
    if digests is not None:
        text = digests_text({**digests, "files": file_digests(folder)})
        (folder / DIGESTS).write_text(text, encoding="utf-8")


def digests_text(parts: dict[str, dict[str, str]]) -> str:
    return json.dumps(parts, indent=1, ensure_ascii=False) + "\n"


def read_digests(path: Path) -> dict[str, dict[str, str]] | None:
    """The parts of the digest file, each as {name: digest}. None if the checkpoint has no digest file.

    Raises QCompressError if the file is malformed.
    """
    file = Path(path) / DIGESTS
    if not file.is_file():
        return None
    value = read_json(file)
    if not all(isinstance(value.get(part, {}), dict) for part in PARTS) or not all(
        part in value for part in FIRST_PARTS
    ):
        raise QCompressError(f"{file}: holds no digests of config and tensors; fetch the file again")
    return value

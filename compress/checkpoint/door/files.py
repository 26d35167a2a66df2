"""Rules for files: regular files inside the folder, JSON of limited size, and the same weights for all loaders.

`weight_files` lists the weight files that are read. `file_faults` finds folders in which transformers and vLLM would
read different files.
"""

import errno
import json
import math
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoint.door.fault import Fault, Faults
from compress.core.errors import QCompressError

if TYPE_CHECKING:
    from compress.checkpoint.read import Checkpoint

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
RECORD, DIGESTS = "qcompress.json", "qcompress.sha256.json"
TOKENIZER, SETTINGS, GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
SPECIAL_MAP, ADDED, VOCABULARY, MERGES = "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"
PIECES, TEMPLATE = "tokenizer.model", "chat_template.jinja"
TOKENIZER_FILES = (TOKENIZER, SETTINGS, SPECIAL_MAP, ADDED, VOCABULARY, MERGES, PIECES, TEMPLATE)
COPIED = (*TOKENIZER_FILES, GENERATION, "LICENSE")  # from the source to what is made from it, if they exist
PROCESSORS = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
SMALL_FILES = (CONFIG, INDEX, *COPIED, *PROCESSORS, "README.md", RECORD, DIGESTS)  # beside the weights
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_JSON = 64_000_000
MAX_DEPTH = 100
LFS = b"version https://git-lfs"
BOM = b"\xef\xbb\xbf"
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))


def check_regular(file: Path, missing: str = "missing; fetch the checkpoint again") -> None:
    """Raises QCompressError if `file` is missing, a loop of links, a pipe, a device or a folder. It is not opened."""
    try:
        mode = file.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise QCompressError(f"{file}: links lead in a circle; copy the real file there") from None
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise QCompressError(f"{file}: {missing}") from None
        raise QCompressError(f"{file}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in KINDS if test(mode)), "a socket")
        raise QCompressError(f"{file}: expected a regular file, found {kind}; copy the real file there")


def check_inside(file: Path, folder: Path) -> None:
    """Raises QCompressError if a path leads out of `folder`. Links to the blobs of a hub cache are allowed."""
    if file.parent.resolve() != folder.resolve() or file.name in ("", ".", ".."):
        raise QCompressError(f"{folder / INDEX}: {file} leads outside {folder}; do not trust this checkpoint")
    if file.is_symlink() and not hub_link(file, folder) and folder.resolve() not in file.resolve().parents:
        raise QCompressError(f"{file}: is a link that leads outside {folder}; copy the file there if you trust it")


def hub_link(file: Path, folder: Path) -> bool:
    """Whether a link has the layout of the hub's cache: …/snapshots/REVISION/file -> …/blobs/HASH."""
    parts = folder.resolve()
    return parts.parent.name == "snapshots" and file.resolve().parent == parts.parent.parent / "blobs"


def check_folder(folder: Path) -> None:
    """Raises QCompressError if a checkpoint's path is not a folder."""
    if not folder.is_dir():
        raise QCompressError(f"{folder}: no such directory; give a folder with config.json and *.safetensors")


def check_small_files(folder: Path) -> None:
    """Raises QCompressError if a file beside the weights is not a regular file inside the folder."""
    for name in SMALL_FILES:
        file = folder / name
        if file.is_symlink() or file.exists():
            check_regular(file, "a link to a missing file; copy the real file there")
            check_inside(file, folder)


def read_bytes(file: Path, limit: int = MAX_JSON) -> bytes:
    """The content of a small regular file. Raises QCompressError if it is larger than `limit` bytes."""
    size = file.stat().st_size
    if size > limit:
        raise QCompressError(f"{file}: {size:,} bytes, more than the {limit:,} that are read; fetch the file again")
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise QCompressError(f"{file}: cannot be read ({error.strerror}); check its permissions") from None
    if raw.startswith(LFS):
        raise lfs_error(file)
    return raw


def lfs_error(file: Path) -> QCompressError:
    """The error for a file that is a pointer of Git LFS, because Git has not fetched its content."""
    return QCompressError(f"{file}: a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")


def read_utf8(file: Path, limit: int = MAX_JSON) -> str:
    """The text of a small regular file. Raises QCompressError if it is not UTF-8 or is larger than `limit` bytes."""
    try:
        return read_bytes(file, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise QCompressError(f"{file}: not UTF-8 at byte {error.start}; fetch the file again") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises QCompressError, with the line, if it is missing or malformed."""
    check_regular(path, f"missing; give a folder that contains {path.name}")
    raw = read_bytes(path)
    if raw.startswith(BOM):
        raise QCompressError(f"{path}: begins with a byte order mark; save it as UTF-8 without one")
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise QCompressError(f"{path}: not valid JSON ({error}); fetch the file again") from None
    if not isinstance(value, dict):
        raise QCompressError(f"{path}: expected a JSON object, found {json_kind(value)}; fetch the file again")
    return value


def json_kind(value: Any) -> str:
    """The JSON name of a value's type, with its article, such as "an object"."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "null")


def read_config_file(file: Path) -> dict[str, Any]:
    """The content of a config.json. {"__float__": "Infinity"}, as transformers 5 writes it, becomes a number."""
    return {key: plain_values(file, value, 1) for key, value in read_json(file).items()}


def plain_values(file: Path, value: Any, depth: int = 0) -> Any:
    """A JSON value in which {"__float__": "Infinity"}, {"__float__": "NaN"} and the like are replaced by their numbers.

    Raises QCompressError if lists and objects are nested more than MAX_DEPTH levels deep.
    """
    if depth > MAX_DEPTH:
        raise QCompressError(f"{file}: more than {MAX_DEPTH} levels of lists and objects; fetch the file again")
    if isinstance(value, dict):
        if value.keys() == {"__float__"} and isinstance(value["__float__"], str) and value["__float__"] in FLOATS:
            return FLOATS[value["__float__"]]
        return {key: plain_values(file, item, depth + 1) for key, item in value.items()}
    return [plain_values(file, item, depth + 1) for item in value] if isinstance(value, list) else value


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those in its index, or all files without an index.

    Raises QCompressError if there are none, or if one is missing, not a regular file, or outside the folder.
    """
    index = path / INDEX
    if index.is_symlink() or index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise QCompressError(f"{index}: weight_map is missing or empty; fetch the file again")
        if not all(isinstance(name, str) for name in weight_map.values()):
            raise QCompressError(f"{index}: weight_map must map tensors to file names; fetch the file again")
        files = [path / name for name in sorted(set(weight_map.values()))]
    else:
        files = sorted(path.glob("*.safetensors"))
    if not files:
        raise no_weights(path)
    for file in files:
        if file.is_symlink():
            check_regular(file, f"a link to a missing file; {INDEX} or the folder lists it; fetch the checkpoint again")
        check_inside(file, path)
        check_regular(file, f"missing, though {INDEX} lists it; fetch the checkpoint again")
    return files


def has_weights(path: Path) -> bool:
    """Whether a folder has weights, or an index of weights."""
    return (path / INDEX).is_file() or any(path.glob("*.safetensors"))


def no_weights(path: Path) -> QCompressError:
    """The error for a folder without safetensors files. If the folder has pickled weights, the error names one."""
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    if pickles:
        return QCompressError(f"{path / pickles[0]}: pickled weights can run code; save them as safetensors")
    return QCompressError(f"{path}: no *.safetensors file; give a directory that contains a model")


def file_faults(checkpoint: "Checkpoint") -> Faults:
    """Folders that loaders read in different ways: adapters, stale indexes, missing shards, second sets of weights."""
    path, names = checkpoint.path, {file.name for file in checkpoint.files}
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"):
        if (path / name).exists():
            text = "a LoRA adapter beside the weights, which some loaders apply and others ignore"
            yield Fault(name, "", text, "merge it into the model, or move it out of the folder")
    if (path / INDEX).exists():
        if SINGLE not in names and (path / SINGLE).exists():
            text = f"lists other files than {SINGLE}, which transformers loads instead"
            yield Fault(INDEX, "", text, f"remove the index and its shards, or {SINGLE}, whichever is older")
        return
    consolidated = sorted(name for name in names if name.startswith("consolidated"))
    if consolidated:
        text = "weights under Mistral's own tensor names, which vLLM would load as well"
        yield Fault(consolidated[0], "", text, "move this file out of the folder")
    yield from unindexed(names)


def unindexed(names: set[str]) -> Faults:
    """Weight files without an index: shards with gaps, or model.safetensors beside others."""
    if SINGLE in names and len(names) > 1:
        other = min(names - {SINGLE})
        text = f"weights beside {SINGLE} without an index: transformers ignores them, vLLM loads them"
        yield Fault(other, "", text, f"move this file out of the folder, or add {INDEX}")
    shards = [match for name in sorted(names) if (match := SHARD.fullmatch(name))]
    for count in sorted({int(match["count"]) for match in shards}):
        numbers = {int(match["number"]) for match in shards if int(match["count"]) == count}
        missing = next((number for number in range(1, count + 1) if number not in numbers), None)
        if missing is not None:
            yield Fault(shards[0].group(), "", f"shard {missing} of {count} is missing", "fetch the checkpoint again")

"""The reference's hidden states on disk, so that the next comparison need not run the reference.

    manifest.json          digests of reference and token ids, sizes, start token, checksum of the states
    hidden.safetensors     `hidden` (n_samples, seq_len, width) float32, after the last block: exact

Hidden states take a hundredth of the bytes of log-probabilities. They are memory-mapped. The manifest is written last:
a folder without a manifest is incomplete and is written again. States from a CPU and from a GPU differ only by float32
rounding, so a run on either device reads both.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.windows import Windows
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.read import Checkpoint, read_header, read_json
from compress.checkpoint.record import tensor_digest
from compress.checkpoint.workdir import remove_partial, tensors_kind
from compress.checkpoint.write import TensorSpec, plan_shard
from compress.core.atomic import free_space, write_atomic
from compress.core.dtypes import Dtype
from compress.core.errors import QCompressError
from compress.core.file_kind import WORK_FILE
from compress.core.units import format_bytes
from compress.distill.targets.cache import differing
from compress.evaluate.drift.hidden_states import HiddenStates, Report, read_windows
from compress.model.blocks import BlockModel

MANIFEST, STATES = "manifest.json", "hidden.safetensors"
OPTION = "--reference-cache"
HIDDEN = tensors_kind("hidden", option=OPTION)
FORMAT = 1
CACHED_START = "heldout_start"  # not `start`: earlier versions stored a start token of other windows there
Row = dict[str, Any]


def read_reference(
    checkpoint: Checkpoint,
    windows: Windows,
    folder: Path | None,
    *,
    device: str = "cpu",
    micro_batch: int | None = None,
    report: Report = lambda row: None,
) -> HiddenStates:
    """The reference's hidden states. They are read from `folder`, or computed and stored there.

    Without a `folder` they are only computed. Raises QCompressError if the folder is damaged, or if it belongs to
    another reference or text; the error names the difference.
    """
    if folder is None:
        return read_windows(checkpoint, windows.ids, device=device, micro_batch=micro_batch, report=report)
    key = cache_key(checkpoint, windows)
    manifest = read_manifest(folder)
    if manifest is not None:
        check_cache_key(folder, manifest, key)
        report({"reads": checkpoint.path.name, "from": str(folder)})
        model = BlockModel(checkpoint.config, weight_reader(checkpoint), device=device)
        return HiddenStates(checkpoint, model, load_states(folder, manifest))
    needed = 4 * windows.ids.numel() * int(checkpoint.config["hidden_size"])
    check_folder(folder, needed)
    states = read_windows(checkpoint, windows.ids, device=device, micro_batch=micro_batch, report=report)
    save_states(folder, states.hidden, key | {CACHED_START: windows.manifest.get("start")})
    return states


def cache_key(checkpoint: Checkpoint, windows: Windows) -> Row:
    """All values that determine the states, by name."""
    n_samples, seq_len = windows.ids.shape
    return {
        "format": FORMAT,
        "dtype": "float32",
        "reference": checkpoint.digest,
        "n_samples": n_samples,
        "seq_len": seq_len,
        "start_token": windows.manifest.get("start_token"),
        "text": [source["digest"] for source in windows.manifest.get("sources", ())],
        "plain_windows": windows.manifest.get("plain_windows"),
        "windows": f"sha256:{tensor_digest(windows.ids)}",
    }


def cached_start(folder: Path | None, checkpoint: Checkpoint) -> Row | None:
    """The start token stored in `folder`, or None if it has none or belongs to another reference."""
    manifest = None if folder is None else read_manifest(folder)
    if manifest is None or manifest["reference"] != checkpoint.digest:
        return None
    start = manifest.get(CACHED_START)
    return start if isinstance(start, dict) and "token" in start else None


def read_manifest(folder: Path) -> Row | None:
    """The manifest of a folder, or None if there is no file. Raises QCompressError if another program wrote it."""
    file = folder / MANIFEST
    if not file.is_file():
        return None
    manifest = read_json(file)
    if manifest.get("format") != FORMAT or "checksum" not in manifest or "reference" not in manifest:
        raise QCompressError(
            f"{file}: this manifest does not belong to a reference cache; pass another folder to --reference-cache"
        )
    return manifest


def check_cache_key(folder: Path, manifest: Row, key: Row) -> None:
    """Raises QCompressError, with the first difference, if the stored key differs from `key`."""
    difference = differing(manifest, key)
    if difference:
        raise QCompressError(
            f"{folder}: this cache stores the states of another run, {difference}; pass another --reference-cache, or "
            "remove the folder"
        )


def check_folder(folder: Path, needed: int) -> None:
    """Raises QCompressError if the folder cannot hold the cache.

    It must have no files but those of a reference cache, and its disk must have `needed` bytes free.
    """
    strangers = [file.name for file in folder.glob("[!.]*") if file.name not in (MANIFEST, STATES)]
    if strangers or (folder.exists() and not folder.is_dir()):
        raise QCompressError(
            f"{folder}: {f'the folder contains {strangers[0]}' if strangers else 'this path is a file'}; "
            "pass a new folder to --reference-cache"
        )
    HIDDEN.check(folder / STATES)
    room, free = free_space(folder)
    if free < needed:
        sizes = f"{format_bytes(needed, short=False)}, but {room} has {format_bytes(free, short=False)} free"
        raise QCompressError(
            f"{folder}: the hidden states need {sizes}; free some space or use another --reference-cache"
        )


def save_states(folder: Path, hidden: Tensor, key: Row) -> None:
    """Write the states, then the manifest with the checksum of the states. Each write is atomic."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, STATES):
        remove_partial(folder, name)
    shard = plan_shard(STATES, [TensorSpec.of("hidden", hidden)])
    write_atomic(
        folder / STATES, shard.header, hidden.contiguous().reshape(-1).view(torch.uint8).numpy().data, kind=HIDDEN
    )
    manifest = key | {"width": hidden.shape[-1], "checksum": f"sha256:{tensor_digest(hidden)}"}
    write_atomic(
        folder / MANIFEST, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode(), kind=WORK_FILE
    )


def load_states(folder: Path, manifest: Row) -> Tensor:
    """The memory-mapped states. Raises QCompressError if shape or checksum differ from the manifest."""
    file = folder / STATES
    if not file.is_file():
        raise QCompressError(f"{file}: the file is missing, although {MANIFEST} exists; remove {folder} and run again")
    info = read_header(file).get("hidden")
    shape = (manifest["n_samples"], manifest["seq_len"], manifest["width"])
    if info is None or info.dtype != Dtype.float32 or info.shape != shape:
        raise QCompressError(f"{file}: the file has no states of shape {shape}; remove {folder} and run again")
    mapped = np.memmap(file, np.uint8, "c", offset=0)  # copy on write: changes stay in memory
    hidden = torch.from_numpy(mapped[info.offset :]).view(info.dtype.torch).view(info.shape)
    if f"sha256:{tensor_digest(hidden)}" != manifest["checksum"]:
        raise QCompressError(f"{file}: the checksum does not match; remove {folder} and run again")
    return hidden

"""What a reference made of the windows, on disk: the next candidate is compared without reading the reference again.

    manifest.json          digests of reference and token ids, sizes, how the windows begin, the states' checksum
    hidden.safetensors     `hidden` (n_samples, seq_len, width) float32, after the last block: exact

The log-probabilities follow from these states, final norm and head, in a hundredth of their bytes. The states are
mapped from the file, so they need no memory. The manifest is written last: without it nothing is there.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.windows import Windows
from compress.checkpoint.formats import weight_reader
from compress.checkpoint.read import Checkpoint, read_header, read_json
from compress.checkpoint.record import tensor_digest
from compress.checkpoint.write import TensorSpec, plan_shard
from compress.core.atomic import write_atomic
from compress.core.errors import QCompressError
from compress.distill.targets.cache import differing
from compress.evaluate.drift.hidden_states import HiddenStates, Report, read_windows
from compress.model.blocks import BlockModel

MANIFEST, STATES = "manifest.json", "hidden.safetensors"
FORMAT = 1
Row = dict[str, Any]


def read_reference(
    checkpoint: Checkpoint,
    windows: Windows,
    folder: Path | None,
    *,
    micro_batch: int | None = None,
    report: Report = lambda row: None,
) -> HiddenStates:
    """The reference's reading of the windows: from `folder` if it is there, else made, and kept there if one is given.

    QCompressError for a folder that holds another reading, by the name of what differs, or one that is damaged.
    """
    if folder is None:
        return read_windows(checkpoint, windows.ids, micro_batch=micro_batch, report=report)
    facts = facts_of(checkpoint, windows)
    found = read_manifest(folder)
    if found is not None:
        refuse_difference(folder, found, facts)
        report({"reads": checkpoint.path.name, "from": str(folder)})
        return HiddenStates(
            checkpoint, BlockModel(checkpoint.config, weight_reader(checkpoint)), load_states(folder, found)
        )
    needed = 4 * windows.ids.numel() * int(checkpoint.config["hidden_size"])
    refuse_folder(folder, needed)
    reading = read_windows(checkpoint, windows.ids, micro_batch=micro_batch, report=report)
    save_states(folder, reading.hidden, facts | {"start": windows.manifest.get("start")})
    return reading


def facts_of(checkpoint: Checkpoint, windows: Windows) -> Row:
    """What must agree, by name."""
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


def known_start(folder: Path | None, checkpoint: Checkpoint, plain_windows: str) -> Row | None:
    """How windows begin for this reference, if `folder` holds its reading of the same text: else None."""
    found = None if folder is None else read_manifest(folder)
    if found is None or found.get("plain_windows") != plain_windows or found["reference"] != checkpoint.digest:
        return None
    start = found.get("start")
    return start if isinstance(start, dict) and "token" in start else None


def read_manifest(folder: Path) -> Row | None:
    """None where there is none. QCompressError for one that is not ours."""
    file = folder / MANIFEST
    if not file.is_file():
        return None
    found = read_json(file)
    if found.get("format") != FORMAT or "checksum" not in found or "reference" not in found:
        raise QCompressError(f"{file}: is not of a reference cache; give another --reference-cache")
    return found


def refuse_difference(folder: Path, found: Row, facts: Row) -> None:
    difference = differing(found, facts)
    if difference:
        raise QCompressError(
            f"{folder}: holds a reading of another {difference}; give another --reference-cache, or remove this one"
        )


def refuse_folder(folder: Path, needed: int) -> None:
    """QCompressError for a folder of other things, hidden ones aside, or a disk without room for `needed` bytes."""
    strangers = [file.name for file in folder.glob("[!.]*") if file.name not in (MANIFEST, STATES)]
    if strangers or (folder.exists() and not folder.is_dir()):
        raise QCompressError(f"{folder}: holds {(strangers or ['no folder'])[0]}; give a new --reference-cache")
    room = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(room).free
    if free < needed:
        raise QCompressError(f"{folder}: needs {needed:,} bytes, {room} has {free:,} free; make room or go elsewhere")


def save_states(folder: Path, hidden: Tensor, facts: Row) -> None:
    """The states first, the manifest with their checksum last, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".*.partial"):  # of a write that was killed
        stale.unlink()
    shard = plan_shard(STATES, [TensorSpec("hidden", hidden.dtype, tuple(hidden.shape))])
    write_atomic(folder / STATES, shard.header, hidden.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    manifest = facts | {"width": hidden.shape[-1], "checksum": f"sha256:{tensor_digest(hidden)}"}
    write_atomic(folder / MANIFEST, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())


def load_states(folder: Path, manifest: Row) -> Tensor:
    """The states, mapped from the file. QCompressError unless they are those that were written."""
    file = folder / STATES
    if not file.is_file():
        raise QCompressError(f"{file}: missing, though {MANIFEST} is there; remove {folder} and give it again")
    info = read_header(file).get("hidden")
    shape = (manifest["n_samples"], manifest["seq_len"], manifest["width"])
    if info is None or info.dtype != torch.float32 or info.shape != shape:
        raise QCompressError(f"{file}: does not hold states {shape}; remove {folder} and give it again")
    mapped = np.memmap(file, np.uint8, "c", offset=0)  # private: pages may be written to, the file never is
    hidden = torch.from_numpy(mapped[info.offset :]).view(info.dtype).view(info.shape)
    if f"sha256:{tensor_digest(hidden)}" != manifest["checksum"]:
        raise QCompressError(f"{file}: its checksum does not hold; remove {folder} and give it again")
    return hidden

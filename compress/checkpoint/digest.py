"""Digests of a checkpoint's files. They need no tensor, so two checkpoints are compared without importing torch."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from compress.checkpoint.door.files import CONFIG, COPIED, check_folder, check_regular, check_small_files, weight_files


def file_sha256(file: Path) -> bytes:
    """The 32 bytes of a file's sha256."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def files_digest(files: Sequence[Path], sha256: Callable[[Path], bytes] = file_sha256) -> str:
    """sha256 over the sha256 of each file in turn, as "sha256:HEX"."""
    return f"sha256:{hashlib.sha256(b''.join(map(sha256, files))).hexdigest()}"


def weights_digest(folder: Path) -> str:
    """The digest of config.json and every weight file of a checkpoint. Reads all weights.

    Raises QCompressError if one of them is missing, not a regular file, or outside the folder.
    """
    check_folder(folder)
    check_small_files(folder)
    check_regular(folder / CONFIG, f"missing; give a folder that contains {CONFIG}")
    return files_digest([folder / CONFIG, *weight_files(folder)])


def small_files_digest(folder: Path) -> str:
    """The digest of the files that are copied into the result: tokenizer, chat template, generation_config.json."""
    return files_digest([path for name in COPIED if (path := folder / name).is_file()])

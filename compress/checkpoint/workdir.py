"""The work folder of an unfinished job: an atomic journal, and checks that settings and owner have not changed."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from compress.checkpoint.digest import files_digest, small_files_digest
from compress.checkpoint.read import Checkpoint, read_header
from compress.core.atomic import file_errors, write_atomic
from compress.core.changes import changed_keys
from compress.core.errors import QCompressError
from compress.core.file_kind import WORK_FILE, FileKind, first_object

Row = dict[str, Any]


def write_journal(path: Path, value: Row) -> None:
    """Replace the journal atomically."""
    write_atomic(path, json.dumps(value, ensure_ascii=False).encode(), kind=WORK_FILE)
    sync_folder(path.parent)


def read_journal(path: Path, keys: Sequence[str]) -> Row:
    """The content of a journal. Raises QCompressError, and keeps all files, if it is damaged or lacks one of `keys`."""
    with file_errors(path):
        value = first_object(path)
    if not set(keys) <= value.keys():
        raise QCompressError(
            f"{path}: is damaged, or qcompress did not write it; remove {path.parent} and run the command again"
        )
    return value


def check_same_settings(folder: Path, old: Row, new: Row) -> None:
    """Raise QCompressError with every changed setting if a job would continue with other settings."""
    changed = changed_keys(old, new)
    if changed:
        changes = ", ".join(f"{key} {old.get(key)} (now {new.get(key)})" for key in changed)
        raise QCompressError(
            f"{folder}: was started with {changes}; use the old settings, or start again with --restart"
        )


def check_weights_unchanged(source: Checkpoint) -> None:
    """Raise QCompressError if config.json or a weight file changed after the digest was computed. Reads them again."""
    if files_digest(source.digest_files) != source.digest:
        raise QCompressError(mixed(source))


def check_small_files_unchanged(source: Checkpoint, digest: str) -> None:
    """Raise QCompressError if the source's `small_files_digest` is no longer `digest`."""
    if small_files_digest(source.path) != digest:
        raise QCompressError(mixed(source))


def mixed(source: Checkpoint) -> str:
    return (
        f"{source}: the files changed during the run, so the result would mix two models and was not kept; "
        "run again when the files no longer change"
    )


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_work(folder: Path, journal: str, keys: Sequence[str]) -> bool:
    """Create the work folder. Returns whether an interrupted run left its `journal`, with these keys, there.

    Raises QCompressError if the journal lacks a key, or if the folder has files but no journal: then another program
    made it.
    """
    with file_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / journal).is_file():
            read_journal(folder / journal, keys)
            return True
        partial = set(partial_files(folder, journal))
        check_no_strangers(folder, [path for path in folder.iterdir() if path not in partial])
    return False


def check_no_strangers(folder: Path, strangers: Sequence[Path]) -> None:
    """Raise QCompressError if there are files of another program in a folder that this program would remove."""
    if strangers:
        raise QCompressError(
            f"{folder}: belongs to another job or program, because it contains {strangers[0].name}; "
            "remove it, or use another --out"
        )


def tensors_kind(*names: str, option: str = "--out") -> FileKind:
    """Safetensors files that contain tensors with all of these names."""

    def recognize(path: Path) -> bool:
        try:
            return read_header(path).keys() >= set(names)
        except QCompressError:
            return False

    return FileKind(recognize, option)


def partial_files(folder: Path, pattern: str) -> list[Path]:
    """The unfinished files that `write_atomic` has left for names that match `pattern`."""
    return list(folder.glob(f".{pattern}.*.partial"))


def remove_partial(folder: Path, pattern: str) -> None:
    """Remove unfinished files of an interrupted `write_atomic`. Those that a running process writes stay."""
    for path in partial_files(folder, pattern):
        if not is_running(path.name.split(".")[-2]):
            path.unlink(missing_ok=True)


def is_running(process: str) -> bool:
    """Whether a process with this number runs on this machine, other than this one."""
    if not process.isdecimal() or int(process) == os.getpid():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def clear_work(folder: Path, journal: str, files: Sequence[str]) -> None:
    """Delete the work files that match the patterns `files`, and at last the `journal`.

    The journal marks the files as this program's, so an interrupted deletion can be continued.
    """
    for pattern in files:
        for path in folder.glob(pattern):
            path.unlink()
    for pattern in (journal, *files):
        remove_partial(folder, pattern)
    (folder / journal).unlink(missing_ok=True)


def remove_work(folder: Path, journal: str, files: Sequence[str]) -> None:
    """Delete a job's work files and then the folder. A folder with files of another program stays."""
    clear_work(folder, journal, files)
    with suppress(OSError):
        folder.rmdir()

"""Which checkpoint folders qcompress wrote: those with its record, in which the digests list every file."""

import shutil
from pathlib import Path

from compress.checkpoint.door.files import DIGESTS, RECORD, read_json
from compress.core.errors import QCompressError
from compress.core.file_kind import json_kind

RECORDS = json_kind("command", "settings", "versions")
NO_LIST = f"{DIGESTS} is missing or lists no files, so foreign files cannot be recognized; move the folder away"


def foreign_part(folder: Path) -> Path | None:
    """The part of a checkpoint that qcompress did not write: the folder without a record, or the first unlisted file.

    It is the digest file if that is missing or lists no files, because any file could then be foreign. None if the
    record is there, and the digests list every file.
    """
    if not (folder / RECORD).is_file() or not RECORDS.matches(folder / RECORD):
        return folder
    digests = read_json(folder / DIGESTS) if (folder / DIGESTS).is_file() else {}
    listed = digests.get("files")
    if not isinstance(listed, dict):
        return folder / DIGESTS
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    return next((file for file in files if file.relative_to(folder).as_posix() not in {*listed, DIGESTS}), None)


def has_no_list(part: Path) -> bool:
    """Whether a foreign part stands for a checkpoint without a list of its files."""
    return part.name == DIGESTS


def check_written_here(folder: Path) -> None:
    """Raises QCompressError if a part of the checkpoint is foreign."""
    foreign = foreign_part(folder)
    if foreign is not None and has_no_list(foreign):
        raise QCompressError(f"{folder}: {NO_LIST}, or use another output")
    if foreign is not None:
        raise QCompressError(
            f"{foreign}: qcompress did not write it, so it is not removed; move it away, or use another output"
        )


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint that qcompress wrote, if it exists. Raises QCompressError if a part of it is foreign."""
    if folder.exists():
        check_written_here(folder)
        shutil.rmtree(folder)

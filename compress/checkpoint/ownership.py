"""Which checkpoint folders qcompress wrote: those with its record, in which the digests list every file."""

import shutil
from pathlib import Path

from compress.checkpoint.door.files import DIGESTS, RECORD, read_json
from compress.core.errors import QCompressError
from compress.core.file_kind import json_kind

RECORDS = json_kind("command", "settings", "versions")


def foreign_part(folder: Path) -> Path | None:
    """The part of a checkpoint that qcompress did not write: the folder without a record, or the first unlisted file.

    None if the record is there, and the digests list every file.
    """
    if not (folder / RECORD).is_file() or not RECORDS.matches(folder / RECORD):
        return folder
    digests = read_json(folder / DIGESTS) if (folder / DIGESTS).is_file() else {}
    listed = digests.get("files")
    if not isinstance(listed, dict):  # a checkpoint of the first version
        return None
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    return next((file for file in files if file.relative_to(folder).as_posix() not in {*listed, DIGESTS}), None)


def check_written_here(folder: Path) -> None:
    """Raises QCompressError if a part of the checkpoint is foreign."""
    foreign = foreign_part(folder)
    if foreign is not None:
        raise QCompressError(
            f"{foreign}: qcompress did not write it, so it is not removed; move it away, or use another output"
        )


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint that qcompress wrote, if it exists. Raises QCompressError if a part of it is foreign."""
    if folder.exists():
        check_written_here(folder)
        shutil.rmtree(folder)

"""The work folder of a backend, beside its output. It belongs to one run: nothing in it is used again.

request.json         what to do: see `request`
windows.safetensors  the calibration windows, int64 (n_samples, seq_len)
checkpoint/          what the backend writes
progress.jsonl       a line {"step": TEXT} per step
result.json          seconds, peak memory and versions; it is there only if the backend has finished
scratch/             the backend's current folder and its temporary files
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.checkpoint.write import check_room
from compress.core.atomic import check_no_link, file_errors
from compress.core.errors import QCompressError
from compress.core.file_kind import json_kind
from compress.core.lock import output_lock
from compress.quantize.journal import JOURNAL, remove_output, work_path

MARKER = "backend.json"
MARKERS = json_kind("backend", "out")
Row = dict[str, Any]


def backend_folder(out: Path) -> Path:
    """The work folder of the backend that writes the checkpoint `out`."""
    return out.with_name(f".{out.name}.backend")


@contextmanager
def open_work_folder(out: Path, backend: str, needed: int, *, restart: bool = False) -> Iterator[Path]:
    """Context with a new work folder. It holds the lock of `out`, and removes the folder at its end.

    The folder of a run that was killed is removed first. Raises QCompressError if `out` is not empty, the disk lacks
    room for `needed` bytes, another process holds the lock, another program made the folder, or qcompress's own methods
    have unfinished work for `out` and `restart` is False.
    """
    folder = backend_folder(out)
    if restart and (work_path(out) / JOURNAL).is_file():
        remove_output(out)
    with output_lock(out):
        if (work_path(out) / JOURNAL).is_file():
            raise QCompressError(
                f"{out}: qcompress's own method has unfinished work there; add --restart to discard it"
            )
        remove_folder(folder)
        check_room(out, needed)
        with file_errors(folder):
            folder.mkdir(parents=True)
            (folder / MARKER).write_text(json.dumps({"backend": backend, "out": str(out)}) + "\n")
            (folder / "scratch").mkdir()
        try:
            yield folder
        finally:
            remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Remove a work folder, if there is one. Raises QCompressError if its marker is missing."""
    check_no_link(folder)
    if not folder.exists():
        return
    marked = (folder / MARKER).is_file() and MARKERS.matches(folder / MARKER)
    if not marked and any(folder.iterdir()):
        raise QCompressError(f"{folder}: belongs to another program; remove it, or choose another --out")
    for path in folder.iterdir():
        if path.name != MARKER:  # the marker goes last, so that an interrupted removal can be continued
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (folder / MARKER).unlink(missing_ok=True)
    folder.rmdir()

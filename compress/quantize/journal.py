"""Which blocks of a job are done, so that a run that was killed goes on where it stood.

Beside the unfinished checkpoint lies a work folder: `journal.json` (the settings of the job, how windows begin, and the
report rows of every finished block), the activations that the next block needs, and a lock. The journal is written
under another name and renamed, after everything it speaks of is on the disk: what it says is true at every moment.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from compress.checkpoint.read import read_json
from compress.checkpoint.workdir import check_same_settings, clear_work, lock, write_journal
from compress.checkpoint.write import check_room, partial_path
from compress.core.errors import QCompressError
from compress.quantize.processes import Processes

Row = dict[str, Any]
JOURNAL = "journal.json"
ALGORITHM = 3  # raise it when the same input would give other codes: a job begun before cannot be finished after


def work_path(out: Path) -> Path:
    """Where the journal and the activations of an unfinished job lie."""
    return out.with_name(f".{out.name}.quantize")


def log_path(out: Path) -> Path:
    """Seconds and errors of every block and linear, as JSON lines; beside the checkpoint, since no two runs agree."""
    return out.with_name(f"{out.name}.quantize.jsonl")


class QuantizeJournal:
    """The journal of the job that writes `out`: `settings`, `blocks` done so far, `notes`. Made by `open_journal`."""

    def __init__(self, out: Path, settings: Row):
        self.out, self.folder = out, work_path(out)
        self.settings = json.loads(json.dumps(settings | {"algorithm": ALGORITHM}, default=str))
        self.notes: Row = {}
        self.blocks: list[Row] = []

    @property
    def rows(self) -> list[Row]:
        """The report rows of all finished blocks."""
        return [row for block in self.blocks for row in block["rows"]]

    @property
    def published(self) -> bool:
        """Whether the job was killed after its checkpoint had its name, and before its work was removed."""
        return bool(self.blocks) and (self.out / "config.json").is_file() and not partial_path(self.out).exists()

    def done(self, rows: list[Row], activations: list[str] | None) -> None:
        """The next block is on the disk: its report rows, and the digests of each process's activations after it."""
        timeless = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        self.blocks.append({"rows": timeless, "activations": activations})
        self.save()

    def save(self) -> None:
        value = {"settings": self.settings, "notes": self.notes, "blocks": self.blocks}
        write_journal(self.folder / JOURNAL, value)

    def load(self) -> None:
        """Take over what an interrupted run has done. QCompressError names the settings that have changed."""
        value = read_json(self.folder / JOURNAL)
        check_same_settings(partial_path(self.out), value["settings"], self.settings)
        self.notes, self.blocks = value["notes"], value["blocks"]

    def clear(self) -> None:
        """Remove the unfinished checkpoint, then the work, the journal last: so that it is known whose they are."""
        shutil.rmtree(partial_path(self.out), ignore_errors=True)
        clear_work(self.folder, JOURNAL)

    def discard(self) -> None:
        """Leave no work behind."""
        self.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def open_journal(out: Path, settings: Row, needed: int, *, restart: bool = False) -> Iterator[QuantizeJournal]:
    """The journal of a job, new or taken over, locked while open. When nothing was done at the end, nothing is left.

    QCompressError for a full directory, a disk without `needed` bytes, a folder that is not ours, a job that runs
    already, or one that was started with other settings; `restart` removes the work of the latter.
    """
    journal = QuantizeJournal(out, settings)
    ours = (journal.folder / JOURNAL).is_file()
    if not ours:
        refuse_foreign(partial_path(out))
        check_room(out, needed)
    journal.folder.mkdir(parents=True, exist_ok=True)
    with lock(journal.folder):
        if restart:
            journal.clear()
        if (journal.folder / JOURNAL).is_file():
            journal.load()
        else:
            log_path(out).unlink(missing_ok=True)  # of a job that was begun before
            journal.save()
        try:
            yield journal
        finally:
            if not journal.blocks:
                journal.discard()


@contextmanager
def shared_journal(
    out: Path, settings: Row, needed: int, processes: Processes, *, restart: bool = False
) -> Iterator[QuantizeJournal]:
    """`open_journal` in the first process; the others get a copy to read."""
    if processes.rank:
        yield processes.first(lambda: QuantizeJournal(out, settings))
        return
    with ExitStack() as stack:
        opened = open_journal(out, settings, needed, restart=restart)
        yield processes.first(lambda: stack.enter_context(opened))


def refuse_foreign(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise QCompressError(
            f"{folder}: was left by another job, so it is not touched; remove it or give another --out"
        )

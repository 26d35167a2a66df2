"""The finished blocks of a job, so that a killed run can be continued.

A work folder lies beside the unfinished checkpoint. It has `journal.json` (settings, start token, report rows of every
finished block), the activations that the next block needs, and a lock. The journal is renamed into place after all the
data it lists is on disk, so it is correct at every moment.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from compress.checkpoint.read import read_json
from compress.checkpoint.workdir import check_same_settings, clear_work, lock, write_journal
from compress.checkpoint.write import check_room, partial_path
from compress.core.errors import QCompressError
from compress.core.report import Row
from compress.quantize.processes import Processes

JOURNAL = "journal.json"
ALGORITHM = 3  # raise it if the same input gives other codes: older unfinished jobs must not be continued


def work_path(out: Path) -> Path:
    """The work folder of an unfinished job."""
    return out.with_name(f".{out.name}.quantize")


def log_path(out: Path) -> Path:
    """The log beside the checkpoint: seconds and errors of every block and linear, as JSON lines.

    Seconds differ between runs, so they are not in the checkpoint.
    """
    return out.with_name(f"{out.name}.quantize.jsonl")


class QuantizeJournal:
    """The state of the job that writes `out`: its settings, finished blocks and notes. Use `open_journal`."""

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
        """Whether the checkpoint is complete: the job was killed after the final rename and before its clean-up."""
        return bool(self.blocks) and (self.out / "config.json").is_file() and not partial_path(self.out).exists()

    def done(self, rows: list[Row], activations: list[str] | None) -> None:
        """Record that the next block is on disk: its report rows, and the digest of each process's activations."""
        timeless = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        self.blocks.append({"rows": timeless, "activations": activations})
        self.save()

    def save(self) -> None:
        """Write journal.json."""
        value = {"settings": self.settings, "notes": self.notes, "blocks": self.blocks}
        write_journal(self.folder / JOURNAL, value)

    def load(self) -> None:
        """Continue the work of an interrupted run. QCompressError names the settings that differ."""
        value = read_json(self.folder / JOURNAL)
        check_same_settings(partial_path(self.out), value["settings"], self.settings)
        self.notes, self.blocks = value["notes"], value["blocks"]

    def clear(self) -> None:
        """Remove the unfinished checkpoint and the work. The journal goes last: it marks both as this program's."""
        shutil.rmtree(partial_path(self.out), ignore_errors=True)
        clear_work(self.folder, JOURNAL)

    def discard(self) -> None:
        """Remove the unfinished checkpoint and the work folder."""
        self.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def open_journal(out: Path, settings: Row, needed: int, *, restart: bool = False) -> Iterator[QuantizeJournal]:
    """The journal of a job, new or of an interrupted run, locked while it is open. `needed` is disk space in bytes.

    A journal without a finished block removes its work at the end. `restart` removes the work of an earlier run.
    QCompressError if `out` is not empty, the disk is too full, the folder is another program's, another process holds
    the lock, or the earlier run had other settings.
    """
    journal = QuantizeJournal(out, settings)
    if not (journal.folder / JOURNAL).is_file():
        check_ours(partial_path(out))
        check_room(out, needed)
    journal.folder.mkdir(parents=True, exist_ok=True)
    with lock(journal.folder):
        if restart:
            journal.clear()
        if (journal.folder / JOURNAL).is_file():
            journal.load()
        else:
            log_path(out).unlink(missing_ok=True)  # of an earlier job
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
    """`open_journal` in the first process; the others get a read-only copy."""
    if processes.rank:
        yield processes.first(lambda: QuantizeJournal(out, settings))
        return
    with ExitStack() as stack:
        opened = open_journal(out, settings, needed, restart=restart)
        yield processes.first(lambda: stack.enter_context(opened))


def check_ours(folder: Path) -> None:
    """QCompressError for a folder with files but no journal beside it."""
    if folder.exists() and any(folder.iterdir()):
        raise QCompressError(
            f"{folder}: belongs to another job, so it is not removed; remove it yourself or choose another --out"
        )

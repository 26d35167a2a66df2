"""The journal of a job: it lists the finished blocks, so that a killed run can continue.

A work folder lies beside the unfinished checkpoint. It has `journal.json` (settings, start token, report rows and
digests of every finished block) and the activations that the next block needs. The journal is renamed into place only
after the data that it lists is on disk, so it is correct at every moment.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from compress.checkpoint.ownership import remove_checkpoint
from compress.checkpoint.workdir import (
    check_same_settings,
    clear_work,
    open_work,
    read_journal,
    remove_work,
    write_journal,
)
from compress.checkpoint.write import check_ours, check_room, partial_path
from compress.core.interrupt import RESUME, on_interrupt
from compress.core.lock import output_lock
from compress.core.report import Row
from compress.quantize.log import LOG, log_path
from compress.quantize.processes import Processes

JOURNAL = "journal.json"
TRAINED = "tuned.safetensors"  # what tuning changed
KEYS = ("settings", "notes", "blocks")  # of the journal
FILES = ("activations-*.bin", "stage-*.bin", TRAINED)  # in the work folder
ALGORITHM = 5  # raise it with every change that gives other codes or other keys of the journal: older jobs are refused


def work_path(out: Path) -> Path:
    """The work folder of an unfinished job."""
    return out.with_name(f".{out.name}.quantize")


class QuantizeJournal:
    """The stored state of the job that writes `out`: settings, finished blocks and notes. Open it by `open_journal`."""

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
        """True if the checkpoint is complete. Then the job was killed after the final rename, during its clean-up."""
        return bool(self.blocks) and (self.out / "config.json").is_file() and not partial_path(self.out).exists()

    def done(self, rows: list[Row], activations: list[str] | None, tensors: dict[str, str]) -> None:
        """Record that the next block is on disk: its report rows, and digests of its tensors and activations."""
        timeless = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        self.blocks.append({"rows": timeless, "activations": activations, "tensors": tensors})
        self.save()

    def save(self) -> None:
        """Write journal.json."""
        value = {"settings": self.settings, "notes": self.notes, "blocks": self.blocks}
        write_journal(self.folder / JOURNAL, value)

    def load(self) -> None:
        """Read the journal of an interrupted run. Raises QCompressError with the names of settings that differ."""
        value = read_journal(self.folder / JOURNAL, KEYS)
        check_same_settings(partial_path(self.out), value["settings"], self.settings)
        self.notes, self.blocks = value["notes"], value["blocks"]

    def clear(self) -> None:
        """Remove the unfinished checkpoint and all work files.

        The journal is removed last, because it marks the other files as written by this program.
        """
        check_ours(partial_path(self.out))
        shutil.rmtree(partial_path(self.out), ignore_errors=True)
        clear_work(self.folder, JOURNAL, FILES)

    def discard(self) -> None:
        """Remove the unfinished checkpoint and the work folder."""
        self.clear()
        remove_work(self.folder, JOURNAL, FILES)

    def kept(self) -> str | None:
        """One line about the work that an interrupt leaves on disk. None if it leaves nothing."""
        count = len(self.blocks)
        if self.published:
            return f"{self.out} is complete; {RESUME}"
        return f"{count} finished blocks are kept in {partial_path(self.out)}; {RESUME}" if count else None


def remove_output(out: Path) -> None:
    """Remove the checkpoint at `out`, its log, and the work of an interrupted run. Files of other programs stay."""
    with output_lock(out):
        remove_checkpoint(out)
        if (work_path(out) / JOURNAL).is_file():
            QuantizeJournal(out, {}).discard()
        LOG.remove(log_path(out))


@contextmanager
def open_journal(out: Path, settings: Row, needed: int, *, restart: bool = False) -> Iterator[QuantizeJournal]:
    """Context with the job's journal, new or from an interrupted run. It is locked while the context is open.

    `needed` is the disk space of the job in bytes. `restart` removes the work of an earlier run. If no block is
    finished when the context closes, all work is removed. Raises QCompressError if `out` is not empty, the disk is too
    full, another program wrote the folder or the log, another process holds the lock, or the earlier run had other
    settings.
    """
    journal = QuantizeJournal(out, settings)
    with output_lock(out), on_interrupt(journal.kept):
        if not (journal.folder / JOURNAL).is_file():
            check_room(out, needed)
        LOG.check(log_path(out))
        resumed = open_work(journal.folder, JOURNAL, KEYS)
        if resumed and not restart:
            journal.load()
        else:
            journal.clear()
            LOG.remove(log_path(out))  # an earlier job may have left its log
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
    """`open_journal` in the first process. All other processes get a read-only copy of the journal."""
    if processes.rank:
        yield processes.first(lambda: QuantizeJournal(out, settings))
        return
    with ExitStack() as stack:
        opened = open_journal(out, settings, needed, restart=restart)
        yield processes.first(lambda: stack.enter_context(opened))

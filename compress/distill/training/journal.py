"""The progress of a training on disk, so that a killed run continues to the same curve and weights.

The folder `.OUT.distill` exists next to the student until the student is written. It holds `journal.json` (settings,
notes, the loss curve of every started stage), and one file of tensors (weights, Adam's moments, best weights,
random-number states). Tensors are written before the journal names them, and older ones removed after, so the journal
is correct at every moment.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from compress.checkpoint.read import read_header, read_tensor
from compress.checkpoint.workdir import (
    check_same_settings,
    clear_work,
    open_work,
    read_journal,
    remove_work,
    write_journal,
)
from compress.checkpoint.write import TensorSpec, check_room, partial_path, plan_shard
from compress.core.atomic import file_errors, write_atomic
from compress.core.distributed import first, place
from compress.core.interrupt import RESUME, on_interrupt
from compress.core.lock import output_lock
from compress.core.report import Row
from compress.distill.sharding.fsdp import copy_to_cpu

T = TypeVar("T")
JOURNAL = "journal.json"
FILES = ("state-*.safetensors",)  # in the work folder
ALGORITHM = 2  # raise it when equal settings would train differently, so that older runs cannot be continued


def work_path(out: Path) -> Path:
    """The folder with the journal and the state of an unfinished training."""
    return out.with_name(f".{out.name}.distill")


@dataclass
class Progress:
    """The progress of a stage: steps, curve, best step and evaluation KL so far, whether it ended and why."""

    step: int = 0
    curve: list[Row] = field(default_factory=list)
    best_step: int = 0
    best_kl: float = float("inf")
    over: bool = False
    stopped: str | None = None


class TrainingJournal:
    """The journal of the training that writes `out`, opened by `open_journal`. Only the first process `writes`."""

    def __init__(self, out: Path, settings: Row):
        self.out, self.folder = out, work_path(out)
        self.settings = plain(settings | {"algorithm": ALGORITHM})
        self.notes: Row = {}
        self.stages: list[Row] = []
        self.file: str | None = None
        self.writes = True

    @property
    def published(self) -> bool:
        """Whether the run was killed after writing its student and before removing its work folder."""
        return "row" in self.notes and (self.out / "config.json").is_file() and not partial_path(self.out).exists()

    def progress(self, stage: int) -> Progress | None:
        """The progress of `stage`; None before its start."""
        return Progress(**self.stages[stage]) if stage < len(self.stages) else None

    def tensors(self, stage: int) -> dict[str, Tensor]:
        """The saved tensors of `stage` if it is the last started one, else {}: older stages have only progress."""
        if self.file is None or stage != len(self.stages) - 1:
            return {}
        return {name: read_tensor(name, info) for name, info in read_header(self.folder / self.file).items()}

    def note(self, name: str, make: Callable[[], T]) -> T:
        """The stored value of `name`; on the first call, the value of `make`, which is stored as plain data."""
        if name not in self.notes:
            self.notes[name] = plain(make())
            self.save()
        return self.notes[name]  # type: ignore[no-any-return]

    def keep(self, stage: int, progress: Progress, tensors: dict[str, Tensor]) -> None:
        """Save this state. QCompressError when the disk is full; the previous state then stays."""
        if not self.writes:
            return
        name = f"state-{stage}-{progress.step:08d}{'-over' if progress.over else ''}.safetensors"
        with file_errors(self.folder / name, "it continues from the last saved state"):
            write_tensors(self.folder / name, tensors)
            self.stages[stage:] = [plain(vars(progress))]
            self.file = name
            self.save()
        for path in self.folder.glob(FILES[0]):
            if path.name != name:
                path.unlink()

    def save(self) -> None:
        if not self.writes:
            return
        value = {"settings": self.settings, "notes": self.notes, "stages": self.stages, "file": self.file}
        write_journal(self.folder / JOURNAL, value)

    def load(self) -> None:
        """Load the progress of an interrupted run. QCompressError names the settings that have changed."""
        value = read_journal(self.folder / JOURNAL, ("settings", "notes", "stages", "file"))
        check_same_settings(self.folder, value["settings"], self.settings)
        self.notes, self.stages, self.file = value["notes"], value["stages"], value["file"]

    def forget(self) -> None:
        """Drop the saved state, so that nothing is left when the run ends."""
        self.file = None

    def clear(self) -> None:
        """Remove the work, the journal last: it identifies the folder until then."""
        clear_work(self.folder, JOURNAL, FILES)

    def discard(self) -> None:
        """Remove the work folder."""
        remove_work(self.folder, JOURNAL, FILES)

    def kept(self) -> str | None:
        """What an interrupt leaves, as one line; None if nothing."""
        return f"the last saved state is kept in {self.folder}; {RESUME}" if self.file else None


@contextmanager
def open_journal(out: Path, settings: Row, needed: int, *, restart: bool = False) -> Iterator[TrainingJournal]:
    """The journal of a training, new or loaded, locked while open. Without a saved state nothing is left at the end.

    QCompressError for an existing `out`, a disk without `needed` bytes, a training that is still running, or an
    interrupted one with other settings; `restart` removes its work instead.
    """
    journal = TrainingJournal(out, settings)
    with output_lock(out), on_interrupt(journal.kept):
        if not (journal.folder / JOURNAL).is_file() or restart:
            check_room(out, needed)
        if open_work(journal.folder, JOURNAL) and not restart:
            journal.load()
            if not journal.published:
                check_room(out, 0)
        else:
            journal.clear()
            journal.save()
        try:
            yield journal
        finally:
            if journal.file is None:
                journal.discard()


@contextmanager
def shared_journal(out: Path, settings: Row, needed: int, *, restart: bool = False) -> Iterator[TrainingJournal]:
    """`open_journal` in the first of several processes; the others get a read-only copy."""
    if place()[0]:
        journal = first(lambda: TrainingJournal(out, settings))
        journal.writes = False
        yield journal
        return
    with ExitStack() as stack:
        opened = open_journal(out, settings, needed, restart=restart)
        yield first(lambda: stack.enter_context(opened))


@dataclass(frozen=True)
class StateSaver:
    """Saves the state of one stage `every` so many steps; without a journal it saves nothing.

    `beside` is a module that is trained with the student in some stages, and saved in all.
    """

    journal: TrainingJournal | None = None
    stage: int = 0
    every: int = 0
    beside: nn.Module | None = None

    def load(self) -> tuple[Progress, dict[str, Tensor]] | None:
        """The progress and the tensors of the stage; None before its start."""
        progress = self.journal.progress(self.stage) if self.journal else None
        if self.journal is None or progress is None:
            return None
        tensors = self.journal.tensors(self.stage)
        with torch.no_grad():
            for name, parameter in self._beside().items():
                if name in tensors:
                    parameter.copy_(tensors[name])
        return progress, tensors

    def due(self, step: int) -> bool:
        """Whether the state after this step is to be saved."""
        return self.journal is not None and self.every > 0 and step % self.every == 0

    def keep(self, progress: Progress, tensors: dict[str, Tensor]) -> None:
        if self.journal is not None:
            beside = {name: copy_to_cpu(parameter.detach()) for name, parameter in self._beside().items()}
            self.journal.keep(self.stage, progress, tensors | beside)

    def _beside(self) -> dict[str, Tensor]:
        named = self.beside.named_parameters() if self.beside is not None else ()
        return {f"beside.{name}": parameter for name, parameter in named}

    def note(self, name: str, make: Callable[[], T]) -> T:
        """This stage's stored value of `name`; on the first call, the value of `make`."""
        return self.journal.note(f"{self.stage}.{name}", make) if self.journal else make()


NOWHERE = StateSaver()


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file atomically."""
    shard = plan_shard(path.name, [TensorSpec(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()])
    ordered = sorted(tensors, key=lambda name: shard.offsets[name])
    for stale in path.parent.glob(".*.partial"):
        stale.unlink()
    write_atomic(path, shard.header, *(tensor_bytes(tensors[name]) for name in ordered))


def tensor_bytes(tensor: Tensor) -> Any:
    """A tensor's bytes in memory, without a copy."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def plain(value: Any) -> Any:
    """A value after a round trip through JSON."""
    return json.loads(json.dumps(value, default=str))

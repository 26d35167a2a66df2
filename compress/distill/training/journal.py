"""The saved progress of a training. A killed run continues from it and ends with the same loss curve and weights.

The folder `.OUT.distill` exists next to the student until the student is written. It holds `journal.json` (settings,
notes, the loss curve of every started stage), and one file of tensors (weights, Adam's moments, best weights,
random-number states). New tensors are written before the journal names them. Old tensors are removed afterwards. So the
journal is correct at every moment.
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
    remove_partial,
    remove_work,
    write_journal,
)
from compress.checkpoint.write import TensorSpec, check_room, partial_path, plan_shard
from compress.core.atomic import file_errors, write_atomic
from compress.core.distributed import first, place
from compress.core.file_kind import WORK_FILE
from compress.core.interrupt import RESUME, on_interrupt
from compress.core.lock import output_lock
from compress.core.report import Row
from compress.distill.sharding.fsdp import copy_to_cpu

T = TypeVar("T")
JOURNAL = "journal.json"
KEYS = ("settings", "notes", "stages", "file")  # of the journal
FILES = ("state-*.safetensors",)  # in the work folder
ALGORITHM = 2  # raise this when a change of the code changes the training: saved runs of older code then stop


def work_path(out: Path) -> Path:
    """The folder with the journal and the state of an unfinished training."""
    return out.with_name(f".{out.name}.distill")


@dataclass
class Progress:
    """The progress of a stage: its steps, loss curve and best evaluation so far.

    `over` means that the stage has finished. `stopped` is the reason if training stopped early.
    """

    step: int = 0
    curve: list[Row] = field(default_factory=list)
    best_step: int = 0
    best_kl: float = float("inf")
    over: bool = False
    stopped: str | None = None


class TrainingJournal:
    """The saved progress of the training that writes `out`. `writes` is True in the first process only."""

    def __init__(self, out: Path, settings: Row):
        self.out, self.folder = out, work_path(out)
        self.settings = plain(settings | {"algorithm": ALGORITHM})
        self.notes: Row = {}
        self.stages: list[Row] = []
        self.file: str | None = None
        self.writes = True

    @property
    def published(self) -> bool:
        """Whether the student is written already. True if the run was killed before it removed its work folder."""
        return "row" in self.notes and (self.out / "config.json").is_file() and not partial_path(self.out).exists()

    def progress(self, stage: int) -> Progress | None:
        """The saved progress of `stage`, or None if nothing is saved."""
        return Progress(**self.stages[stage]) if stage < len(self.stages) else None

    def tensors(self, stage: int) -> dict[str, Tensor]:
        """The saved tensors of `stage`, or {}: only the stage that started last has saved tensors."""
        if self.file is None or stage != len(self.stages) - 1:
            return {}
        return {name: read_tensor(name, info) for name, info in read_header(self.folder / self.file).items()}

    def note(self, name: str, make: Callable[[], T]) -> T:
        """The stored value of `name`. The first call stores the result of `make`, converted to JSON types."""
        if name not in self.notes:
            self.notes[name] = plain(make())
            self.save()
        return self.notes[name]  # type: ignore[no-any-return]

    def keep(self, stage: int, progress: Progress, tensors: dict[str, Tensor]) -> None:
        """Save the progress and the tensors of a stage.

        Raises QCompressError if the disk is full. The previous state then stays.
        """
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
        """Load the progress of an interrupted run. Raises QCompressError, with the name, if a setting differs."""
        value = read_journal(self.folder / JOURNAL, KEYS)
        check_same_settings(self.folder, value["settings"], self.settings)
        self.notes, self.stages, self.file = value["notes"], value["stages"], value["file"]

    def forget(self) -> None:
        """Mark the saved state as useless: `open_journal` then removes the work folder at the end."""
        self.file = None

    def clear(self) -> None:
        """Remove all files of the work folder. The journal is removed last: it marks the folder as a work folder."""
        clear_work(self.folder, JOURNAL, FILES)

    def discard(self) -> None:
        """Remove the work folder."""
        remove_work(self.folder, JOURNAL, FILES)

    def kept(self) -> str | None:
        """A line about the work that is kept after an interrupt, or None if no work is kept."""
        return f"the last saved state is kept in {self.folder}; {RESUME}" if self.file else None


@contextmanager
def open_journal(out: Path, settings: Row, needed: int, *, restart: bool = False) -> Iterator[TrainingJournal]:
    """Open the journal of a training: a new one, or that of an interrupted run. The work folder is locked meanwhile.

    `restart` removes the work of an interrupted run first. If no state is saved at the end, the folder is removed.
    Raises QCompressError if `out` exists, if the disk has less than `needed` bytes free, if the training is still
    running, or if the interrupted run had other settings.
    """
    journal = TrainingJournal(out, settings)
    with output_lock(out), on_interrupt(journal.kept):
        if not (journal.folder / JOURNAL).is_file() or restart:
            check_room(out, needed)
        if open_work(journal.folder, JOURNAL, KEYS) and not restart:
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
    """Call `open_journal` in the first of several processes. The other processes get a journal that writes nothing."""
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
    """Saves the state of one stage whenever `every` steps have passed. Without a journal it saves nothing.

    `beside` is a module outside the student, such as the alignment. Every saved state contains its parameters.
    """

    journal: TrainingJournal | None = None
    stage: int = 0
    every: int = 0
    beside: nn.Module | None = None

    def load(self) -> tuple[Progress, dict[str, Tensor]] | None:
        """The saved progress and tensors of the stage, or None if nothing is saved. Restores the module `beside`."""
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
        """Whether a state must be saved after this step."""
        return self.journal is not None and self.every > 0 and step % self.every == 0

    def keep(self, progress: Progress, tensors: dict[str, Tensor]) -> None:
        if self.journal is not None:
            beside = {name: copy_to_cpu(parameter.detach()) for name, parameter in self._beside().items()}
            self.journal.keep(self.stage, progress, tensors | beside)

    def _beside(self) -> dict[str, Tensor]:
        named = self.beside.named_parameters() if self.beside is not None else ()
        return {f"beside.{name}": parameter for name, parameter in named}

    def note(self, name: str, make: Callable[[], T]) -> T:
        """The stage's stored value of `name`. The first call stores the result of `make`."""
        return self.journal.note(f"{self.stage}.{name}", make) if self.journal else make()


NOWHERE = StateSaver()


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file atomically."""
    shard = plan_shard(path.name, [TensorSpec.of(name, t) for name, t in tensors.items()])
    ordered = sorted(tensors, key=lambda name: shard.offsets[name])
    remove_partial(path.parent, FILES[0])
    write_atomic(path, shard.header, *(tensor_bytes(tensors[name]) for name in ordered), kind=WORK_FILE)


def tensor_bytes(tensor: Tensor) -> Any:
    """The bytes of a CPU tensor, as a buffer without a copy."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def plain(value: Any) -> Any:
    """The value, converted to JSON types: what `json.loads` returns for its JSON text."""
    return json.loads(json.dumps(value, default=str))

"""Where a training stands, on disk, so that a run that was killed goes on to the same curve and the same weights.

Beside the student lies `.OUT.distill` until the student is written: `journal.json` (settings, notes, and the loss curve
of every stage begun), one file of tensors that it names (weights, Adam's moments, the best weights so far, random
numbers' states), and a lock. Tensors are on the disk before the journal speaks of them, and the file before them is
removed after: what the journal says is true at every moment.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from compress.checkpoint.read import read_header, read_json, read_tensor
from compress.checkpoint.workdir import check_same_settings, clear_work, lock, write_journal
from compress.checkpoint.write import TensorSpec, check_room, partial_path, plan_shard
from compress.core.atomic import disk_errors, write_atomic
from compress.distill.sharding.fsdp import whole
from compress.distill.sharding.parallel import first, place

Row = dict[str, Any]
T = TypeVar("T")
JOURNAL = "journal.json"
ALGORITHM = 2  # raise it when the same settings would train otherwise: a run begun before cannot be finished after


def work_path(out: Path) -> Path:
    """Where the journal and the state of an unfinished training lie."""
    return out.with_name(f".{out.name}.distill")


@dataclass
class Progress:
    """How far a stage is: steps done, their curve, the best step and held-out KL so far, whether it is over and why."""

    step: int = 0
    curve: list[Row] = field(default_factory=list)
    best_step: int = 0
    best_kl: float = float("inf")
    over: bool = False
    stopped: str | None = None


class TrainingJournal:
    """The journal of the training that writes `out`. Made by `open_journal`; only the first process `writes`."""

    def __init__(self, out: Path, settings: Row):
        self.out, self.folder = out, work_path(out)
        self.settings = plain(settings | {"algorithm": ALGORITHM})
        self.notes: Row = {}
        self.stages: list[Row] = []
        self.file: str | None = None
        self.writes = True

    @property
    def published(self) -> bool:
        """Whether the run was killed after its student had its name, and before its work was removed."""
        return "row" in self.notes and (self.out / "config.json").is_file() and not partial_path(self.out).exists()

    def progress(self, stage: int) -> Progress | None:
        """How far `stage` was, None when it was not begun."""
        return Progress(**self.stages[stage]) if stage < len(self.stages) else None

    def tensors(self, stage: int) -> dict[str, Tensor]:
        """The state of the last stage begun; {} for one before it, of which only the progress is kept."""
        if self.file is None or stage != len(self.stages) - 1:
            return {}
        return {name: read_tensor(name, info) for name, info in read_header(self.folder / self.file).items()}

    def note(self, name: str, make: Callable[[], T]) -> T:
        """What was noted under this name, or else what `make` gives, which is then noted: plain data."""
        if name not in self.notes:
            self.notes[name] = plain(make())
            self.save()
        return self.notes[name]  # type: ignore[no-any-return]

    def keep(self, stage: int, progress: Progress, tensors: dict[str, Tensor]) -> None:
        """Make this the state to go on from. QCompressError when the disk is full; the state before stays then."""
        if not self.writes:
            return
        name = f"state-{stage}-{progress.step:08d}{'-over' if progress.over else ''}.safetensors"
        with disk_errors(self.folder / name, "it goes on from the last state that was kept"):
            write_tensors(self.folder / name, tensors)
            self.stages[stage:] = [plain(vars(progress))]
            self.file = name
            self.save()
        for path in self.folder.glob("*.safetensors"):
            if path.name != name:
                path.unlink()

    def save(self) -> None:
        if not self.writes:
            return
        value = {"settings": self.settings, "notes": self.notes, "stages": self.stages, "file": self.file}
        write_journal(self.folder / JOURNAL, value)

    def load(self) -> None:
        """Take over what an interrupted run has done. QCompressError names the settings that have changed."""
        value = read_json(self.folder / JOURNAL)
        check_same_settings(self.folder, value["settings"], self.settings)
        self.notes, self.stages, self.file = value["notes"], value["stages"], value["file"]

    def forget(self) -> None:
        """Keep no state when the run ends: it is over, and nothing came of it."""
        self.file = None

    def clear(self) -> None:
        """Remove the work, the journal last: so that it is known whose it is."""
        clear_work(self.folder, JOURNAL)

    def discard(self) -> None:
        """Leave no work behind."""
        self.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def open_journal(out: Path, settings: Row, needed: int, *, restart: bool = False) -> Iterator[TrainingJournal]:
    """The journal of a training, new or taken over, locked while open. When no state was kept, nothing is left.

    QCompressError for a full directory, a disk without `needed` bytes, a training that runs already, or one that was
    started with other settings; `restart` removes the work of the latter.
    """
    journal = TrainingJournal(out, settings)
    begun = (journal.folder / JOURNAL).is_file() and not restart
    if not begun:
        check_room(out, needed)
    journal.folder.mkdir(parents=True, exist_ok=True)
    with lock(journal.folder):
        if restart:
            journal.clear()
        if begun:
            journal.load()
            if not journal.published:
                check_room(out, 0)
        else:
            journal.save()
        try:
            yield journal
        finally:
            if journal.file is None:
                journal.discard()


@contextmanager
def shared_journal(out: Path, settings: Row, needed: int, *, restart: bool = False) -> Iterator[TrainingJournal]:
    """`open_journal` in the first of several processes; the others get a copy to read."""
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
    """Where one stage of a training keeps its state, and how many steps apart; without a journal nowhere.

    `beside` is what learns beside the student, in some of the stages, and is kept in all.
    """

    journal: TrainingJournal | None = None
    stage: int = 0
    every: int = 0
    beside: nn.Module | None = None

    def load(self) -> tuple[Progress, dict[str, Tensor]] | None:
        """How far the stage was and the state it was in; None when it was not begun."""
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
        """Whether the state after this step is one to keep."""
        return self.journal is not None and self.every > 0 and step % self.every == 0

    def keep(self, progress: Progress, tensors: dict[str, Tensor]) -> None:
        if self.journal is not None:
            beside = {name: whole(parameter.detach()) for name, parameter in self._beside().items()}
            self.journal.keep(self.stage, progress, tensors | beside)

    def _beside(self) -> dict[str, Tensor]:
        named = self.beside.named_parameters() if self.beside is not None else ()
        return {f"beside.{name}": parameter for name, parameter in named}

    def note(self, name: str, make: Callable[[], T]) -> T:
        """What an earlier run noted of this stage under this name, or else what `make` gives: plain data."""
        return self.journal.note(f"{self.stage}.{name}", make) if self.journal else make()


NOWHERE = StateSaver()


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file that is there whole or not at all."""
    shard = plan_shard(path.name, [TensorSpec(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()])
    ordered = sorted(tensors, key=lambda name: shard.offsets[name])
    for stale in path.parent.glob(".*.partial"):
        stale.unlink()
    write_atomic(path, shard.header, *(tensor_bytes(tensors[name]) for name in ordered))


def tensor_bytes(tensor: Tensor) -> Any:
    """A tensor's bytes as they lie in memory, not copied."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value, default=str))

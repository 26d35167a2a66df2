"""One stage of a recipe: what it writes, what that depends on, and whether it has to run."""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from compress.checkpoint.ownership import NO_LIST, foreign_part, has_no_list
from compress.core.changes import changed_keys
from compress.core.file_kind import FileKind, json_kind
from compress.pipeline.digests import Digests

Row = dict[str, Any]
CHECKPOINT_COMMANDS = ("distill", "quantize")
TABLE = json_kind("compare", "verdicts", option="`out`")  # report.json
RESULTS = "results"  # folder of the result files


def result_file(folder: Path, name: str) -> Path:
    """The path of the result file called `name` in the recipe's folder."""
    return folder / RESULTS / f"{name}.json"


def check_file(folder: Path, variant: str) -> Path:
    """The file with the findings of `check` on one variant."""
    return result_file(folder, f"check-{variant}")


class Action(StrEnum):
    """What happens to a stage."""

    SKIP = "skip"
    MAKE = "make"
    REFUSE = "refuse"


class Decision(NamedTuple):
    """What happens to a stage, and why."""

    action: Action
    reason: str


@dataclass(frozen=True)
class RecipeStage:
    """A checkpoint or a result file to write, everything that it depends on, and the call that writes it.

    `name` is the path of the output below the recipe's folder. `sources` are checkpoints, `texts` are names or files,
    and `results` are files of earlier stages. `make(restart)` writes the output; `restart` discards an interrupted run.
    `kind` is the kind of a result file.
    """

    name: str
    command: str
    out: Path
    settings: Row
    make: Callable[[bool], object]
    sources: tuple[Path, ...] = ()
    texts: tuple[str, ...] = ()
    results: tuple[Path, ...] = ()
    kind: FileKind | None = None

    @property
    def writes_checkpoint(self) -> bool:
        return self.command in CHECKPOINT_COMMANDS

    def inputs(self, digests: Digests) -> Row:
        """Everything that the output depends on, as plain data: settings, version, and digests by name."""
        return {
            "command": self.command,
            "settings": json.loads(json.dumps(self.settings, default=str)),
            "sources": {source.name: digests.checkpoint(source) for source in self.sources},
            "texts": {text: digests.text(text) for text in self.texts},
            "results": {file.name: digests.file(file) for file in self.results},
            "version": version("qcompress"),
        }


@dataclass
class BuildState:
    """The content of `stages.json`.

    By stage, `started` holds the inputs of an unfinished run; `finished` holds the inputs and the digest of the output.
    `files` holds the digests of all files that were read.
    """

    started: Row = field(default_factory=dict)
    finished: Row = field(default_factory=dict)
    files: Row = field(default_factory=dict)


def decide(stage: RecipeStage, state: BuildState, digests: Digests, remade: Collection[Path]) -> Decision:
    """Whether a stage is skipped, made or refused.

    `remade` holds the outputs that earlier stages will write again.
    """
    if not stage.out.exists():
        return Decision(Action.MAKE, "no output yet")
    finished = state.finished.get(stage.name)
    if finished is None:
        return unrecorded(stage, state, digests, remade)
    if finished["output"] != digests.output(stage.out):
        return refuse(stage, "the output has changed since this recipe wrote it")
    before = [path.name for path in (*stage.sources, *stage.results) if path in remade]
    changes = "" if before else describe_changes(finished["inputs"], stage.inputs(digests))
    if not before and not changes:
        return Decision(Action.SKIP, "unchanged")
    reason = f"{', '.join(before)} is made again" if before else f"changed: {changes}"
    return refuse(stage, reason) if is_foreign(stage) else Decision(Action.MAKE, reason)


def unrecorded(stage: RecipeStage, state: BuildState, digests: Digests, remade: Collection[Path]) -> Decision:
    """The decision on an output that `stages.json` does not list as finished.

    The output is complete if this recipe started its stage with the same inputs: a run can end between the output and
    its entry in `stages.json`.
    """
    inputs_exist = not {*stage.sources, *stage.results} & {*remade}
    if stage.name in state.started and inputs_exist and state.started[stage.name] == stage.inputs(digests):
        return Decision(Action.SKIP, "unchanged")
    return refuse(stage, "the output was not made by this recipe")


def refuse(stage: RecipeStage, reason: str) -> Decision:
    """A decision that refuses a stage, and advises what to do.

    It advises --restart only for an output of qcompress, because no other output is ever replaced.
    """
    if is_foreign(stage):
        return Decision(Action.REFUSE, foreign_words(stage))
    return Decision(Action.REFUSE, f"{reason}; use --restart to make it again, or set another `out`")


def foreign_words(stage: RecipeStage) -> str:
    """Why a foreign output is refused, with the name of a file that is not part of a checkpoint."""
    part = foreign_part(stage.out) if stage.writes_checkpoint else stage.out
    if part is None or part == stage.out:
        return "was not made by qcompress, so it is never replaced; set another `out`"
    if has_no_list(part):
        return f"{NO_LIST}, or set another `out`"
    name = part.relative_to(stage.out)
    return f"contains {name}, which qcompress did not write; move that file away, or set another `out`"


def is_foreign(stage: RecipeStage) -> bool:
    """Whether another program made the file at the stage's output, or a part of the folder."""
    if stage.writes_checkpoint and stage.out.exists():
        return foreign_part(stage.out) is not None
    return stage.kind is not None and not stage.kind.matches(stage.out)


def describe_changes(old: Row, new: Row) -> str:
    """The differences between the inputs of two runs in words; "" if there are none."""
    settings = (old.get("settings") or {}, new["settings"])
    names = [f"{key} ({settings[0].get(key)} → {settings[1].get(key)})" for key in changed_keys(*settings)]
    for kind in ("sources", "texts", "results"):
        names += changed_keys(old.get(kind) or {}, new[kind])
    if old.get("version") != new["version"]:
        names.append(f"qcompress ({old.get('version')} → {new['version']})")
    return ", ".join(names)

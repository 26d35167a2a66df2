"""Two schedules for the stages of a block. In both, a stage gets inputs that earlier, quantized stages have computed.

`lockstep` runs each micro-batch through the block in its own greenlet, which pauses at the first linear of a stage.
When all greenlets have paused, the stage is quantized, and they continue with the new weights. So each micro-batch runs
through the block once. `replay` runs the block from its start for every stage. It is slower, needs little memory, and
gives the same bits.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import greenlet
from torch import Tensor, nn

from calibration.capture import watch_inputs
from compress.model.blocks import Block
from compress.quantize.methods.error_correction import StageInput

Stage = tuple[str, ...]


class Batches(Protocol):
    """The inputs of a block: micro-batches, read by index from a list or a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...


class Outputs(Protocol):
    """A store for the outputs of a block: each micro-batch's output is written by the index of the micro-batch."""

    def __setitem__(self, index: int, tensor: Tensor, /) -> None: ...


@dataclass(frozen=True)
class BlockPass:
    """One pass of all micro-batches (batch, seq, hidden) through a block. `outputs` stores what `run` returns."""

    block: Block
    stages: Sequence[Stage]
    run: Callable[[Tensor], Tensor]
    batches: Batches
    outputs: Outputs


AtStage = Callable[[Stage, Iterable[StageInput]], None]
Schedule = Callable[[BlockPass, AtStage], None]


def trace_stages(linears: dict[str, nn.Linear], run: Callable[[], object]) -> list[Stage]:
    """Groups of linears with the same input, in call order. Used for model families that are not in the table."""
    groups: list[tuple[Tensor, list[str]]] = []

    def record(name: str, x: Tensor) -> None:
        if groups and groups[-1][0].data_ptr() == x.data_ptr() and groups[-1][0].shape == x.shape:
            groups[-1][1].append(name)
        else:
            groups.append((x, [name]))  # holding x keeps the next input from reusing its memory

    with watch_inputs(dict(linears), record):
        run()
    return [tuple(names) for _, names in groups]


def lockstep(work: BlockPass, at_stage: AtStage) -> None:
    """Run each micro-batch once through the block, and call `at_stage(stage, inputs)` once per stage.

    `inputs` are the stage's inputs for all micro-batches. `at_stage` may change weights. Raises ValueError if a
    micro-batch reaches the stages in another order.
    """
    stage_of = {name: index for index, stage in enumerate(work.stages) for name in stage}
    scheduler, residuals = greenlet.getcurrent(), {}
    finished = 0

    def pause(name: str, x: Tensor) -> None:
        worker = greenlet.getcurrent()
        if name not in stage_of:
            residuals[worker] = x
        elif stage_of[name] >= finished:
            scheduler.switch((stage_of[name], StageInput(x, residuals.get(worker))))

    workers = [greenlet.greenlet(work.run) for _ in range(len(work.batches))]
    with watch_inputs(watched(work.block, stage_of), pause):
        for index, stage in enumerate(work.stages):
            arrivals = [
                worker.switch() if index else worker.switch(work.batches[i]) for i, worker in enumerate(workers)
            ]
            inputs = [stage_input(work, arrival, index) for arrival in arrivals]
            del arrivals
            at_stage(stage, inputs)
            del inputs
            finished = index + 1
        for i, worker in enumerate(workers):
            work.outputs[i] = worker.switch()


def watched(block: Block, linears: Iterable[str]) -> dict[str, nn.Module]:
    """The modules to watch, by path: first those whose input is the residual stream, then the linears."""
    paths = {stage.residual for stage in block.stages or () if stage.residual}
    return {path: block.module.get_submodule(path) for path in (*paths, *linears)}


def stage_input(work: BlockPass, arrival: object, index: int) -> StageInput:
    """The input of stage `index` for a micro-batch that has paused there.

    `arrival` is (stage number, stage input), or the block's output if the micro-batch did not pause. Raises ValueError
    unless it paused at stage `index`.
    """
    if isinstance(arrival, tuple) and arrival[0] == index:
        return arrival[1]
    place = work.stages[arrival[0]] if isinstance(arrival, tuple) else "the end of the block"
    raise ValueError(f"{work.block.name}: a micro-batch reached {place}, but {work.stages[index]} comes next")


class Reached(Exception):
    """Raised at the first linear of an unfinished stage, to end the forward pass there."""


def replay(work: BlockPass, at_stage: AtStage) -> None:
    """Run the pass with the same result as `lockstep`, bit for bit. For every stage, the block runs from its start.

    Only one micro-batch is in memory.
    """
    for index, stage in enumerate(work.stages):
        at_stage(stage, (reach(work, index, work.batches[i]) for i in range(len(work.batches))))
    for i in range(len(work.batches)):
        work.outputs[i] = work.run(work.batches[i])


def reach(work: BlockPass, index: int, batch: Tensor) -> StageInput:
    """The input of stage `index` for one micro-batch. The forward pass ends at this stage."""
    unfinished = {name: number for number, stage in enumerate(work.stages) for name in stage if number >= index}
    arrival: object = None
    residual: Tensor | None = None

    def stop(name: str, x: Tensor) -> None:
        nonlocal arrival, residual
        if name not in unfinished:
            residual = x
            return
        arrival = (unfinished[name], StageInput(x, residual))
        raise Reached

    with watch_inputs(watched(work.block, unfinished), stop), suppress(Reached):
        work.run(batch)
    return stage_input(work, arrival, index)

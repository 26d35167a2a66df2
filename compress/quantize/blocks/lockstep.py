"""Two schedules for the stages of a block. In both, a stage's inputs are computed by the quantized stages before it.

`lockstep` runs each micro-batch through the block in its own greenlet, which pauses at the first linear of a stage.
When all have paused, the stage is quantized, and every micro-batch continues with the new weights: one pass in all.
`replay` runs the block from its start for every stage. It is slower, needs little memory, and gives the same bits.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Protocol

import greenlet
from torch import Tensor, nn

from calibration.capture import watch_inputs
from compress.model.blocks import Block
from compress.quantize.methods.error_correction import StageInput

Stage = tuple[str, ...]


class Batches(Protocol):
    """Micro-batches by number: a list of tensors, or a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...


class Outputs(Protocol):
    """A store for outputs by number."""

    def __setitem__(self, index: int, tensor: Tensor, /) -> None: ...


def trace_stages(linears: dict[str, nn.Linear], run: Callable[[], object]) -> list[Stage]:
    """Groups of linears with the same input, in order of their first call: for families that are in no table."""
    groups: list[tuple[Tensor, list[str]]] = []

    def record(name: str, x: Tensor) -> None:
        if groups and groups[-1][0].data_ptr() == x.data_ptr() and groups[-1][0].shape == x.shape:
            groups[-1][1].append(name)
        else:
            groups.append((x, [name]))  # holding x keeps the next input from reusing its memory

    with watch_inputs(dict(linears), record):
        run()
    return [tuple(names) for _, names in groups]


def lockstep(
    block: Block,
    stages: Sequence[Stage],
    run: Callable[[Tensor], Tensor],
    batches: Batches,
    at_stage: Callable[[Stage, Iterable[StageInput]], None],
    outputs: Outputs,
) -> None:
    """Fill `outputs` with `run` of every micro-batch (batch, seq, hidden), and call `at_stage` once per stage.

    `at_stage(stage, inputs)` receives the stage's inputs of all micro-batches, and may change weights. ValueError if a
    micro-batch reaches the stages in another order.
    """
    stage_of = {name: index for index, stage in enumerate(stages) for name in stage}
    scheduler, residuals = greenlet.getcurrent(), {}
    finished = 0

    def pause(name: str, x: Tensor) -> None:
        worker = greenlet.getcurrent()
        if name not in stage_of:
            residuals[worker] = x
        elif stage_of[name] >= finished:
            scheduler.switch((stage_of[name], StageInput(x, residuals.get(worker))))

    workers = [greenlet.greenlet(run) for _ in range(len(batches))]
    with watch_inputs(watched(block, stage_of), pause):
        for index, stage in enumerate(stages):
            arrivals = [worker.switch() if index else worker.switch(batches[i]) for i, worker in enumerate(workers)]
            inputs = [stage_input(block, stages, arrival, index) for arrival in arrivals]
            del arrivals
            at_stage(stage, inputs)
            del inputs
            finished = index + 1
        for i, worker in enumerate(workers):
            outputs[i] = worker.switch()


def watched(block: Block, linears: Iterable[str]) -> dict[str, nn.Module]:
    """The linears and the modules whose input is the residual stream, by path."""
    paths = {stage.residual for stage in block.stages or () if stage.residual}
    return {path: block.module.get_submodule(path) for path in (*paths, *linears)}


def stage_input(block: Block, stages: Sequence[Stage], arrival: object, index: int) -> StageInput:
    """The input in `arrival`, which is (stage number, input) or the block's output. ValueError for another stage."""
    if isinstance(arrival, tuple) and arrival[0] == index:
        return arrival[1]
    place = stages[arrival[0]] if isinstance(arrival, tuple) else "the end of the block"
    raise ValueError(f"{block.name}: a micro-batch reached {place}, expected {stages[index]}")


class Reached(Exception):
    """Raised at the first linear of an unfinished stage, to end the forward pass there."""


def replay(
    block: Block,
    stages: Sequence[Stage],
    run: Callable[[Tensor], Tensor],
    batches: Batches,
    at_stage: Callable[[Stage, Iterable[StageInput]], None],
    outputs: Outputs,
) -> None:
    """The same result as `lockstep`, bit for bit, but every stage runs the block from its start.

    Only one micro-batch is in memory.
    """
    for index, stage in enumerate(stages):
        at_stage(stage, (reach(block, stages, index, run, batches[i]) for i in range(len(batches))))
    for i in range(len(batches)):
        outputs[i] = run(batches[i])


def reach(
    block: Block, stages: Sequence[Stage], index: int, run: Callable[[Tensor], Tensor], batch: Tensor
) -> StageInput:
    """The input of stage `index` for one micro-batch; the forward pass ends there."""
    unfinished = {name: number for number, stage in enumerate(stages) for name in stage if number >= index}
    arrival: object = None
    residual: Tensor | None = None

    def stop(name: str, x: Tensor) -> None:
        nonlocal arrival, residual
        if name not in unfinished:
            residual = x
            return
        arrival = (unfinished[name], StageInput(x, residual))
        raise Reached

    with watch_inputs(watched(block, unfinished), stop), suppress(Reached):
        run(batch)
    return stage_input(block, stages, arrival, index)

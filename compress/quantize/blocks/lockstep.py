"""One pass over the windows, stage by stage: every statistic comes from inputs that quantized weights have made.

Each micro-batch runs through the block in a greenlet of its own. At the first linear of a stage it parks; when all are
parked there, the stage's inputs are summed up, its linears are replaced, and every micro-batch goes on through the new
weights. So a block runs once per window, not once per stage, and the order of the stages is the model's own.
Where that many parked tensors do not fit into memory, `replay` runs every stage from the start instead.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

import greenlet
from torch import Tensor, nn

from calibration.capture import watch_inputs
from compress.model.blocks import Block

Stage = tuple[str, ...]


class StageInput(NamedTuple):
    """One micro-batch at a stage: what its linears see, (batch, seq, in), and the state of the residual stream before
    it, (batch, seq, hidden), where the block's table says which modules see that."""

    x: Tensor
    residual: Tensor | None = None


class Batches(Protocol):
    """Micro-batches by number: a list of tensors, or a file of them."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...


class Outputs(Protocol):
    """Where outputs go, by number."""

    def __setitem__(self, index: int, tensor: Tensor, /) -> None: ...


def trace_stages(linears: dict[str, nn.Linear], run: Callable[[], object]) -> list[Stage]:
    """Linears that see the very same input, in the order they are first called. For families that no table knows."""
    groups: list[tuple[Tensor, list[str]]] = []

    def note(name: str, x: Tensor) -> None:
        if groups and groups[-1][0].data_ptr() == x.data_ptr() and groups[-1][0].shape == x.shape:
            groups[-1][1].append(name)
        else:
            groups.append((x, [name]))  # kept, so that its memory cannot be the next input's

    with watch_inputs(dict(linears), note):
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
    """Fill `outputs` with `run` of every micro-batch (batch, seq, hidden); `at_stage` is called once per stage.

    `at_stage(stage, inputs)` gets what all micro-batches bring to the stage's linears, and may change weights.
    ValueError when micro-batches take different ways, or stages come in another order than given.
    """
    stage_of = {name: index for index, stage in enumerate(stages) for name in stage}
    driver, states = greenlet.getcurrent(), {}
    reached = 0

    def park(name: str, x: Tensor) -> None:
        worker = greenlet.getcurrent()
        if name not in stage_of:
            states[worker] = x
        elif stage_of[name] >= reached:
            driver.switch((stage_of[name], StageInput(x, states.get(worker))))

    workers = [greenlet.greenlet(run) for _ in range(len(batches))]
    with watch_inputs(watched(block, stage_of), park):
        for index, stage in enumerate(stages):
            if index == 0:
                answers = [worker.switch(batches[i]) for i, worker in enumerate(workers)]
            else:
                answers = [worker.switch() for worker in workers]
            inputs = [stage_input(block, stages, answer, index) for answer in answers]
            del answers
            at_stage(stage, inputs)
            reached = index + 1
            del inputs
        for i, worker in enumerate(workers):
            outputs[i] = worker.switch()


def watched(block: Block, linears: Iterable[str]) -> dict[str, nn.Module]:
    """The linears by path, and the modules that see the residual stream."""
    paths = {stage.residual for stage in block.stages or () if stage.residual}
    return {path: block.module.get_submodule(path) for path in (*paths, *linears)}


def stage_input(block: Block, stages: Sequence[Stage], answer: object, index: int) -> StageInput:
    if isinstance(answer, tuple) and answer[0] == index:
        return answer[1]
    found = stages[answer[0]] if isinstance(answer, tuple) else "the end of the block"
    raise ValueError(f"{block.name}: a micro-batch reached {found}, expected {stages[index]}")


class Reached(Exception):
    """Ends a partial forward at the first linear of a stage that is not quantized yet."""


def replay(
    block: Block,
    stages: Sequence[Stage],
    run: Callable[[Tensor], Tensor],
    batches: Batches,
    at_stage: Callable[[Stage, Iterable[StageInput]], None],
    outputs: Outputs,
) -> None:
    """What `lockstep` does, to the bit, with one micro-batch in memory: every stage runs from the block's start."""
    for index, stage in enumerate(stages):
        at_stage(stage, (reach(block, stages, index, run, batches[i]) for i in range(len(batches))))
    for i in range(len(batches)):
        outputs[i] = run(batches[i])


def reach(
    block: Block, stages: Sequence[Stage], index: int, run: Callable[[Tensor], Tensor], batch: Tensor
) -> StageInput:
    """The input of stage `index` for one micro-batch; the forward ends there."""
    waiting = {name: number for number, stage in enumerate(stages) for name in stage if number >= index}
    answer: object = None
    state: Tensor | None = None

    def stop(name: str, x: Tensor) -> None:
        nonlocal answer, state
        if name not in waiting:
            state = x
            return
        answer = (waiting[name], StageInput(x, state))
        raise Reached

    with watch_inputs(watched(block, waiting), stop), suppress(Reached):
        run(batch)
    return stage_input(block, stages, answer, index)

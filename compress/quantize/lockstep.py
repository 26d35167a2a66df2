"""One pass over the windows, stage by stage: every statistic comes from inputs that quantized weights have made.

Each micro-batch runs through the block in a greenlet of its own. At the first linear of a stage it parks; when all are
parked there, the stage's inputs are summed up, its linears are replaced, and every micro-batch goes on through the new
weights. So a block runs once per window, not once per stage, and the order of the stages is the model's own.
"""

from collections.abc import Callable, Sequence

import greenlet
from torch import Tensor, nn

from calibration.capture import watch_inputs
from compress.model.blocks import Block

Stage = tuple[str, ...]


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
    batches: Sequence[Tensor],
    at_stage: Callable[[Stage, list[Tensor]], None],
) -> list[Tensor]:
    """Outputs of `run` for every micro-batch (batch, seq, hidden); `at_stage` is called once per stage, before it runs.

    `at_stage(stage, inputs)` gets all inputs of the stage's linears, each (batch, seq, in), and may change weights.
    ValueError when micro-batches take different ways, or stages come in another order than given.
    """
    stage_of = {name: index for index, stage in enumerate(stages) for name in stage}
    driver = greenlet.getcurrent()
    reached = 0

    def park(name: str, x: Tensor) -> None:
        if stage_of[name] >= reached:
            driver.switch((stage_of[name], x))

    workers = [greenlet.greenlet(run) for _ in batches]
    with watch_inputs({name: block.linears[name] for name in stage_of}, park):
        answers = [worker.switch(batch) for worker, batch in zip(workers, batches, strict=True)]
        for index, stage in enumerate(stages):
            inputs = [stage_input(block, stages, answer, index) for answer in answers]
            del answers
            at_stage(stage, inputs)
            reached = index + 1
            del inputs
            answers = [worker.switch() for worker in workers]
    if not all(worker.dead for worker in workers):
        raise ValueError(f"{block.name}: a linear ran twice; its stages are {stages}")
    return answers


def stage_input(block: Block, stages: Sequence[Stage], answer: object, index: int) -> Tensor:
    if isinstance(answer, tuple) and answer[0] == index:
        return answer[1]
    found = stages[answer[0]] if isinstance(answer, tuple) else "the end of the block"
    raise ValueError(f"{block.name}: a micro-batch reached {found}, expected {stages[index]}")

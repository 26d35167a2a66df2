"""The first phase of tuning: train each block alone to reproduce the output of its 16-bit block.

    minimise  mean over tokens of ‖B̂(x̂) − B(x)‖² / ‖B(x)‖²

x are the states in the 16-bit model, and x̂ the states after the tuned blocks before this one. So a block also
compensates for errors of earlier blocks. The error of a token is divided by the token's size, because the next norm
divides by this size, and a few tokens of any model are far larger than the others. The first phase of EfficientQAT is
similar and also trains the codes (Chen et al. 2024, https://arxiv.org/abs/2407.11062).
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from compress.core.schedule import learning_rate
from compress.model.blocks import BlockModel
from compress.model.malloc import release_memory
from compress.quantize.tune.model import Adam, TunedWeights, TuneSettings, backward, batches

Row = dict[str, Any]
Report = Callable[[Row], None]


@torch.no_grad()
def tune_blocks(
    teacher: BlockModel, model: BlockModel, student: TunedWeights, ids: Tensor, settings: TuneSettings, report: Report
) -> Tensor:
    """Train the multipliers of each block of `student`. Returns the teacher's states after its last block.

    `model` reads its weights from `student`. `ids` are (n, seq), and states are (n, seq, hidden). If training does not
    lower a block's error on the last `held_out` windows, the block's old multipliers are restored. If `block_epochs`
    is 0, nothing is trained. Memory holds both models' states of all windows. Both models need an open
    `embedding_and_norm`.
    """
    targets = first_states(teacher, ids, settings)
    states = first_states(model, ids, settings) if settings.block_epochs else None
    for index in range(len(model)):
        started = time.perf_counter()
        targets = advance(teacher, index, targets, settings)
        release_memory()
        if states is None:
            continue
        before, after = train_block(model, student, index, states, targets, settings)
        states = advance(model, index, states, settings)
        release_memory()
        row = {"tune_block": f"{index + 1}/{len(model)}", "error_before": before, "error": after}
        report(row | {"seconds": round(time.perf_counter() - started, 1)})
    return targets


def train_block(
    model: BlockModel, student: TunedWeights, index: int, states: Tensor, targets: Tensor, settings: TuneSettings
) -> tuple[float, float]:
    """Train one block. Returns its error on the held-out windows before and after.

    If training does not lower the error, the old multipliers are restored, and both errors are equal.
    """
    trained = len(states) - settings.held_out
    measure = partial(block_error, model, index, states[trained:], targets[trained:], settings)
    untrained = student.snapshot(name for name in student.multipliers if name.startswith(f"{model.name(index)}."))
    adam, before = Adam(student.multipliers[name] for name in untrained), measure()
    steps = settings.block_epochs * math.ceil(trained / settings.batch)
    for step, rows in enumerate(batches(trained, settings, settings.block_epochs), 1):
        with model.block(index) as block:
            run, loss = model.runner(block, index), partial(relative_error, targets[rows])
            backward(student, block, run, states[rows], loss, settings.matmul_dtype)
        adam.step(learning_rate(step, steps, settings.block_learning_rate))
    after = measure()
    if not after < before:
        student.restore(untrained)
    return before, min(before, after)


def first_states(model: BlockModel, ids: Tensor, settings: TuneSettings) -> Tensor:
    """The input of the first block, (n, seq, hidden). The model needs an open `embedding_and_norm`.

    Windows are embedded in the batches of training, because `embed` also records the arguments that blocks need for
    each batch shape.
    """
    return torch.cat([model.embed(part) for part in parts_of(ids, settings)])


def advance(model: BlockModel, index: int, states: Tensor, settings: TuneSettings) -> Tensor:
    """The output of block `index` for all states, (n, seq, hidden)."""
    with model.block(index) as block:
        return torch.cat([model.runner(block, index)(part) for part in parts_of(states, settings)])


def parts_of(windows: Tensor, settings: TuneSettings) -> list[Tensor]:
    """Split the windows into batches: first training windows, then held-out windows. No batch mixes the two."""
    trained = len(windows) - settings.held_out
    return [*windows[:trained].split(settings.batch), *windows[trained:].split(settings.batch)]


def block_error(model: BlockModel, index: int, states: Tensor, targets: Tensor, settings: TuneSettings) -> float:
    """Mean `relative_error` of the block's outputs for the inputs `states`, compared with `targets`."""
    with model.block(index) as block:
        parts = zip(states.split(settings.batch), targets.split(settings.batch), strict=True)
        errors = [relative_error(target, model.runner(block, index)(part)) * len(part) for part, target in parts]
    return float(sum(errors)) / len(states)


def relative_error(targets: Tensor, output: Tensor) -> Tensor:
    """Mean over tokens of ‖output − targets‖² / ‖targets‖², both (batch, seq, hidden)."""
    return ((output - targets).square().sum(-1) / targets.square().sum(-1)).mean()

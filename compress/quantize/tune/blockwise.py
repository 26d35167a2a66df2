"""Tuning's first phase: each block by itself learns to give what the 16-bit block gives.

    minimise  mean over tokens of ‖B̂(x̂) − B(x)‖² / ‖B(x)‖²

x are the 16-bit model's states, x̂ those that the tuned blocks before have made: a block also makes up for them.
Each token counts by its own size: the next norm divides by it, and a few tokens of any model are far larger.
EfficientQAT's first phase (Chen et al. 2024, https://arxiv.org/abs/2407.11062) also trains the codes; here they stay.
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
    """Give `student`, whose weights `model` takes, the multipliers that bring each block nearest to `teacher`'s.

    Of (n, seq) `ids` the last `held_out` judge: a block that is no nearer on them keeps its multipliers. Both models'
    states of all windows are in memory, (n, seq, hidden) each; the teacher's after its last block are what comes back.
    No `block_epochs`, no training: only they are made. Needs `ends` of both.
    """
    wanted = first_states(teacher, ids, settings)
    states = first_states(model, ids, settings) if settings.block_epochs else None
    for index in range(len(model)):
        started = time.perf_counter()
        wanted = advance(teacher, index, wanted, settings)
        release_memory()
        if states is None:
            continue
        before, after = train_block(model, student, index, states, wanted, settings)
        states = advance(model, index, states, settings)
        release_memory()
        line = {"tune_block": f"{index + 1}/{len(model)}", "error_before": before, "error": after}
        report(line | {"seconds": round(time.perf_counter() - started, 1)})
    return wanted


def train_block(
    model: BlockModel, student: TunedWeights, index: int, states: Tensor, wanted: Tensor, settings: TuneSettings
) -> tuple[float, float]:
    """The block's error on the held-out windows before and after; the student has the multipliers of the lower one."""
    trained = len(states) - settings.held_out
    judge = partial(block_error, model, index, states[trained:], wanted[trained:], settings)
    kept = student.snapshot(name for name in student.multipliers if name.startswith(f"{model.name(index)}."))
    adam, before = Adam(student.multipliers[name] for name in kept), judge()
    steps = settings.block_epochs * math.ceil(trained / settings.batch)
    for step, rows in enumerate(batches(trained, settings, settings.block_epochs), 1):
        with model.block(index) as block:
            run, loss = model.runner(block, index), partial(relative_error, wanted[rows])
            backward(student, block, run, states[rows], loss, settings.matmul_dtype)
        adam.step(learning_rate(step, steps, settings.block_learning_rate))
    after = judge()
    if not after < before:
        student.restore(kept)
    return before, min(before, after)


def first_states(model: BlockModel, ids: Tensor, settings: TuneSettings) -> Tensor:
    """(n, seq, hidden): the first block's input, in batches of every shape that training has. Needs `ends`."""
    return torch.cat([model.embed(part) for part in parts_of(ids, settings)])


def advance(model: BlockModel, index: int, states: Tensor, settings: TuneSettings) -> Tensor:
    """What block `index` makes of all states (n, seq, hidden)."""
    with model.block(index) as block:
        return torch.cat([model.runner(block, index)(part) for part in parts_of(states, settings)])


def parts_of(windows: Tensor, settings: TuneSettings) -> list[Tensor]:
    """The windows that are trained on, then those that judge, each in batches."""
    trained = len(windows) - settings.held_out
    return [*windows[:trained].split(settings.batch), *windows[trained:].split(settings.batch)]


def block_error(model: BlockModel, index: int, states: Tensor, wanted: Tensor, settings: TuneSettings) -> float:
    """Mean `relative_error` of what the block makes of these states."""
    with model.block(index) as block:
        parts = zip(states.split(settings.batch), wanted.split(settings.batch), strict=True)
        errors = [relative_error(wish, model.runner(block, index)(part)) * len(part) for part, wish in parts]
    return float(sum(errors)) / len(states)


def relative_error(wanted: Tensor, output: Tensor) -> Tensor:
    """Mean over tokens of the squared distance over the squared size of what is wanted, both (batch, seq, hidden)."""
    return ((output - wanted).square().sum(-1) / wanted.square().sum(-1)).mean()

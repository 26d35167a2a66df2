"""Calibrate the experts of a block: count their tokens, and give all tokens to experts that see too few.

Each expert is quantized with the statistics of its own tokens. The router of the calibration text may hardly choose an
expert. Then the expert computes all tokens of the block, so that its statistics are those of every token; the output of
the block does not change. Each such expert is named in the report.
"""

from collections.abc import Iterable

import torch

from compress.core.report import Row
from compress.model.blocks import Block
from compress.model.experts import SplitExperts
from compress.quantize.methods.error_correction import StageInput
from compress.quantize.processes import Processes

Names = tuple[str, ...]
FEWEST = 0.25  # tokens per input channel: with fewer, most of an expert's correlations are noise. Chosen, not measured


class Routing:
    """The experts of one block and their tokens. Does nothing in a block without experts."""

    def __init__(self, block: Block):
        self.path = block.experts
        self.experts = block.module.get_submodule(block.experts) if block.experts else None
        self.tokens: list[int] = []
        if isinstance(self.experts, SplitExperts):
            self.experts.sees_all = frozenset()

    def insert(self, stages: list[Names]) -> list[Names]:
        """The stages, and before those of the first expert one at which the tokens are counted."""
        first = next((index for index, names in enumerate(stages) if self.expert_of(names[0]) is not None), None)
        return stages if first is None else [*stages[:first], (f"{self.path}.counts",), *stages[first:]]

    def expert_of(self, linear: str) -> int | None:
        """The number of the expert that a linear belongs to. None if it belongs to none."""
        if self.path is None or not linear.startswith(f"{self.path}."):
            return None
        return int(linear.removeprefix(f"{self.path}.").partition(".")[0])

    def count(self, inputs: Iterable[StageInput], processes: Processes) -> None:
        """Sum the tokens of each expert over all windows, and let experts with too few of them see all tokens."""
        assert isinstance(self.experts, SplitExperts)
        counts = torch.stack([one.x for one in inputs]).sum(0).tolist()
        self.tokens = [processes.total(int(count)) for count in counts]
        self.experts.sees_all = frozenset(index for index, tokens in enumerate(self.tokens) if tokens < self.fewest)

    @property
    def fewest(self) -> float:
        """The tokens that an expert needs for statistics of its own."""
        assert isinstance(self.experts, SplitExperts)
        return FEWEST * max(parameter.shape[1] for parameter in self.experts.parameters())

    def describe(self, linear: str, rows: list[Row]) -> None:
        """Add the expert's tokens to its report rows, and whether all tokens of the block were used instead."""
        expert = self.expert_of(linear)
        if expert is not None and isinstance(self.experts, SplitExperts):
            for row in rows:
                row |= {"tokens": self.tokens[expert], "shared_statistics": expert in self.experts.sees_all}

"""Calibration windows for one model: they begin as this model wants them to begin."""

from collections.abc import Sequence
from typing import Any

from calibration.start import StartToken
from calibration.windows import Windows, build_windows
from compress.checkpoint.load import measure_blocks_start
from compress.model.blocks import BlockModel


def windows_start(blocks: BlockModel, tokenizer: Any, sources: Sequence[str], **size: int) -> StartToken:
    """Whether this model's windows of `build_windows(n_samples, seq_len, seed)` begin with its start token."""
    return measure_blocks_start(blocks, tokenizer, build_windows(sources, tokenizer, **size).ids)


def calibration_windows(
    blocks: BlockModel, tokenizer: Any, sources: Sequence[str], **size: int
) -> tuple[Windows, StartToken]:
    """The windows themselves, and how they begin."""
    start = windows_start(blocks, tokenizer, sources, **size)
    return build_windows(sources, tokenizer, start_token=start.token, **size), start

"""Calibration windows for one model: they begin as this model wants them to begin."""

from collections.abc import Sequence
from typing import Any

from calibration.start import StartToken, choose_start
from calibration.windows import Windows, build_windows
from compress.checkpoint.load import start_candidate
from compress.model.blocks import BlockModel

START_WINDOWS, START_LENGTH = 4, 128  # enough to tell, and little beside the calibration itself


def windows_start(blocks: BlockModel, tokenizer: Any, sources: Sequence[str], **size: int) -> StartToken:
    """Whether this model's windows of `build_windows(n_samples, seq_len, seed)` begin with its start token.

    That is measured on a few short ones.
    """
    plain = build_windows(sources, tokenizer, **size)
    candidate = start_candidate(tokenizer, blocks.model.config.to_dict())
    return choose_start(plain.ids[:START_WINDOWS, :START_LENGTH], candidate, blocks.nll)


def calibration_windows(
    blocks: BlockModel, tokenizer: Any, sources: Sequence[str], **size: int
) -> tuple[Windows, StartToken]:
    """The windows themselves, and how they begin."""
    start = windows_start(blocks, tokenizer, sources, **size)
    return build_windows(sources, tokenizer, start_token=start.token, **size), start

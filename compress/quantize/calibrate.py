"""Calibration windows for one model: they begin as this model wants them to begin."""

from collections.abc import Sequence
from typing import Any

from calibration.errors import TooShortError
from calibration.start import StartToken
from calibration.windows import Windows, build_windows
from compress.checkpoint.load import measure_blocks_start
from compress.config import QuantizeConfig
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


def job_start(blocks: BlockModel, tokenizer: Any, sources: Sequence[str], config: QuantizeConfig) -> StartToken:
    """How the windows of a job begin: measured on the `n_samples` of its config."""
    return windows_start(blocks, tokenizer, sources, **window_size(config))


def job_windows(tokenizer: Any, sources: Sequence[str], config: QuantizeConfig, start_token: int | None) -> Windows:
    """`n_samples` windows and the `held_out` ones after them; where the text has no more, these are their last."""
    size = window_size(config)
    more = size | {"n_samples": config.n_samples + config.held_out}
    try:
        return build_windows(sources, tokenizer, start_token=start_token, **more)
    except TooShortError:
        return build_windows(sources, tokenizer, start_token=start_token, **size)


def window_size(config: QuantizeConfig) -> dict[str, int]:
    return {"n_samples": config.n_samples, "seq_len": config.seq_len, "seed": config.seed}

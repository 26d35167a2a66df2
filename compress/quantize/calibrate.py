"""Calibration windows for one model: they begin as this model wants them to begin."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from calibration.errors import TooShortError
from calibration.start import StartToken
from calibration.windows import Windows, build_windows
from compress.checkpoint.load import measure_blocks_start
from compress.core.config import QuantizeConfig
from compress.model.blocks import BlockModel
from compress.model.precision import matmul_in


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
    """How the windows of a job begin: measured on the `n_samples` of the config, in its matmul dtype."""
    with matmul_in(block_matmul_dtype(config, blocks.device)):
        return windows_start(blocks, tokenizer, sources, **window_size(config))


def job_windows(tokenizer: Any, sources: Sequence[str], config: QuantizeConfig, start_token: int | None) -> Windows:
    """`n_samples` windows and `held_out` more; where the text has fewer, the last `held_out` of n_samples are held out.

    The manifest says which. Raises TooShortError for a text without n_samples windows.
    """
    size, held = window_size(config), config.held_out
    try:
        return build_windows(sources, tokenizer, start_token=start_token, held_out=held, **size)
    except TooShortError:
        windows = build_windows(sources, tokenizer, start_token=start_token, **size)
        return replace(windows, manifest=windows.manifest | {"n_samples": config.samples - held, "held_out": held})


def block_matmul_dtype(config: QuantizeConfig, device: torch.device) -> torch.dtype:
    """What a CPU's blocks multiply in; on a GPU their weights are of the config's type already."""
    return getattr(torch, config.compute_dtype) if device.type == "cpu" else torch.float32


def window_size(config: QuantizeConfig) -> dict[str, int]:
    return {"n_samples": config.samples, "seq_len": config.seq_len, "seed": config.seed}

"""Calibration windows of one model, with or without its start token at their beginning."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from calibration.errors import TooShortError
from calibration.start import StartToken
from calibration.windows import Windows, build_windows
from compress.checkpoint.load import measure_blocks_start
from compress.core.config import CalibrationConfig, MethodConfig, QuantizeConfig
from compress.model.blocks import BlockModel
from compress.model.precision import matmul_in


def windows_start(blocks: BlockModel, tokenizer: Any, sources: Sequence[str], **size: int) -> StartToken:
    """The start token that lowers this model's loss on windows of the sources, or none.

    `size` are the arguments of `build_windows`: n_samples, seq_len, seed.
    """
    return measure_blocks_start(blocks, tokenizer, build_windows(sources, tokenizer, **size).ids)


def calibration_windows(
    blocks: BlockModel, tokenizer: Any, sources: Sequence[str], **size: int
) -> tuple[Windows, StartToken]:
    """Windows of the sources with this model's start token, and the measurement behind it."""
    start = windows_start(blocks, tokenizer, sources, **size)
    return build_windows(sources, tokenizer, start_token=start.token, **size), start


def job_start(blocks: BlockModel, tokenizer: Any, config: QuantizeConfig) -> StartToken:
    """The start token of a job's windows, measured with the matmul dtype of its blocks."""
    with matmul_in(block_matmul_dtype(config, blocks.device)):
        return windows_start(blocks, tokenizer, config.text, **window_size(config))


def job_windows(tokenizer: Any, config: CalibrationConfig, start_token: int | None) -> Windows:
    """The `samples` calibration windows, then `held_out` windows.

    A shorter text has `samples` windows only; their last `held_out` are then held out. The manifest has both counts.
    TooShortError for a text of fewer than `samples` windows.
    """
    size, held_out = window_size(config), config.held_out
    try:
        return build_windows(config.text, tokenizer, start_token=start_token, held_out=held_out, **size)
    except TooShortError:
        windows = build_windows(config.text, tokenizer, start_token=start_token, **size)
        counts = {"n_samples": config.samples - held_out, "held_out": held_out}
        return replace(windows, manifest=windows.manifest | counts)


def block_matmul_dtype(config: MethodConfig, device: torch.device) -> torch.dtype:
    """The dtype that a CPU's float32 blocks multiply in; float32 on a GPU, whose blocks have the dtype already."""
    return getattr(torch, config.compute_dtype) if device.type == "cpu" else torch.float32


def window_size(config: CalibrationConfig) -> dict[str, int]:
    """The size of a job's windows as arguments of `build_windows`."""
    return {"n_samples": config.samples, "seq_len": config.seq_len, "seed": config.seed}

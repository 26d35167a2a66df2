"""Build the calibration windows of a model. They begin with its start token if that lowers the model's loss."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from calibration.errors import TooShortError
from calibration.start import StartToken
from calibration.windows import Windows, build_windows
from compress.checkpoint.start import measure_blocks_start
from compress.core.config import CalibrationConfig, MethodConfig, QuantizeConfig
from compress.model.blocks import BlockModel
from compress.model.precision import matmul_in, rough_dtype


def windows_start(blocks: BlockModel, tokenizer: Any, sources: Sequence[str], **size: int) -> StartToken:
    """Measure whether a start token lowers this model's loss on windows of the sources.

    `size` holds arguments of `build_windows`: n_samples, seq_len, seed.
    """
    return measure_blocks_start(blocks, tokenizer, build_windows(sources, tokenizer, answers_only=False, **size).ids)


def calibration_windows(
    blocks: BlockModel, tokenizer: Any, sources: Sequence[str], **size: int
) -> tuple[Windows, StartToken]:
    """Windows of the sources for this model, and the measurement that chose their start token."""
    start = windows_start(blocks, tokenizer, sources, **size)
    return build_windows(sources, tokenizer, start_token=start.token, answers_only=False, **size), start


def job_start(blocks: BlockModel, tokenizer: Any, config: QuantizeConfig) -> StartToken:
    """Measure the start token of a job's windows. Matrix products have the dtype that the job's blocks use."""
    with matmul_in(block_matmul_dtype(config, blocks.device)):
        return windows_start(blocks, tokenizer, config.text, **window_size(config))


def job_windows(tokenizer: Any, config: CalibrationConfig, start_token: int | None) -> Windows:
    """The calibration windows of a job, then its held-out windows.

    These are `samples` + `held_out` windows. If the text is too short for that, there are only `samples` windows, and
    the last `held_out` of them are held out. The manifest has the number of each.
    Raises TooShortError if the text has fewer than `samples` windows.
    """
    held_out = config.held_out
    options: dict[str, Any] = {"start_token": start_token, "answers_only": False, **window_size(config)}
    try:
        return build_windows(config.text, tokenizer, held_out=held_out, **options)
    except TooShortError:
        windows = build_windows(config.text, tokenizer, **options)
        counts = {"n_samples": config.samples - held_out, "held_out": held_out}
        return replace(windows, manifest=windows.manifest | counts)


def block_matmul_dtype(config: MethodConfig, device: torch.device) -> torch.dtype:
    """The dtype of matrix products that need no float32: `compute_dtype` on a CPU, and its `rough_dtype` on a GPU."""
    dtype: torch.dtype = getattr(torch, config.compute_dtype)
    return dtype if device.type == "cpu" else rough_dtype(dtype)


def window_size(config: CalibrationConfig) -> dict[str, int]:
    """Number, length and seed of a job's windows, as arguments of `build_windows`."""
    return {"n_samples": config.samples, "seq_len": config.seq_len, "seed": config.seed}

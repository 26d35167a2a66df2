"""The 16-bit model of a job: its blocks, and the dtype of their matrix products."""

import torch

from compress.checkpoint.finite import check_finite
from compress.checkpoint.read import Checkpoint
from compress.core.config import QuantizeConfig
from compress.core.errors import QCompressError
from compress.model.blocks import BlockModel
from compress.model.precision import fastest_matmul_dtype
from compress.quantize.layout.plan import LayoutPlan


def choose_compute_dtype(config: QuantizeConfig, plan: LayoutPlan, device: str) -> str:
    """The dtype of matrix products. For "auto", the fastest dtype of this CPU, or the checkpoint's dtype on a GPU.

    Raises QCompressError if the config sets float16 and the device is a CPU.
    """
    if config.compute_dtype == "float16" and device == "cpu":
        raise QCompressError("--compute-dtype float16: statistics overflow on a CPU; use bfloat16 or float32")
    if config.compute_dtype != "auto":
        return config.compute_dtype
    return str(fastest_matmul_dtype() if device == "cpu" else plan.scheme.dtype).removeprefix("torch.")


def make_blocks(checkpoint: Checkpoint, config: QuantizeConfig, device: str) -> BlockModel:
    """The 16-bit model, to load block by block: in `compute_dtype` on a GPU, in float32 on a CPU.

    Loading a weight raises QCompressError if the weight has NaN or Inf.
    """
    dtype = torch.float32 if device == "cpu" else getattr(torch, config.compute_dtype)
    return BlockModel(checkpoint.config, lambda name: check_finite(name, checkpoint.tensor(name)), dtype, device)

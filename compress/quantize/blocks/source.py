"""The 16-bit model of a job: its blocks, and the dtype of their matrix products."""

import torch

from compress.checkpoint.finite import check_finite
from compress.checkpoint.formats import model_dtype
from compress.checkpoint.read import Checkpoint
from compress.core.config import QuantizeConfig
from compress.core.dtypes import Dtype
from compress.core.errors import QCompressError
from compress.model.blocks import BlockModel
from compress.model.precision import fastest_matmul_dtype, gpu_dtype


def choose_compute_dtype(config: QuantizeConfig, checkpoint: Checkpoint, device: str) -> str:
    """The dtype of matrix products. For "auto", the fastest dtype of this CPU, or the `gpu_dtype` of the checkpoint.

    Raises QCompressError if the config sets float16 and the device is a CPU.
    """
    if config.compute_dtype == "float16" and device == "cpu":
        raise QCompressError("--compute-dtype float16: statistics overflow on a CPU; use bfloat16 or float32")
    if config.compute_dtype != "auto":
        return config.compute_dtype
    if device == "cpu":
        return Dtype.of(fastest_matmul_dtype()).value
    stored, model_type = model_dtype(checkpoint.config).torch, str(checkpoint.config.get("model_type"))
    return Dtype.of(gpu_dtype(stored, model_type)).value


def make_blocks(checkpoint: Checkpoint, config: QuantizeConfig, device: str) -> BlockModel:
    """The 16-bit model, to load block by block: in `compute_dtype` on a GPU, in float32 on a CPU.

    Loading a weight raises QCompressError if the weight has NaN or Inf.
    """
    dtype = torch.float32 if device == "cpu" else getattr(torch, config.compute_dtype)
    return BlockModel(checkpoint.config, lambda name: check_finite(name, checkpoint.tensor(name)), dtype, device)

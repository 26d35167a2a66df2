"""Which device runs a model: the value of `--device`."""

import torch

from compress.core.errors import QCompressError


def pick_device(name: str = "auto") -> str:
    """ "cpu" or "cuda" for "auto", "cpu" or "cuda". QCompressError for a GPU that torch does not find."""
    gpu = torch.cuda.is_available()
    if name == "cuda" and not gpu:
        raise QCompressError("--device cuda: torch finds no GPU; use --device cpu, or install a torch build for CUDA")
    return "cuda" if gpu and name != "cpu" else "cpu"

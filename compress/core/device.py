"""Which device runs a model: the value of `--device`."""

import torch

from compress.core.errors import QCompressError


def pick_device(name: str = "auto") -> str:
    """ "cpu" or "cuda" for "auto", "cpu" or "cuda". QCompressError for a GPU that torch does not find."""
    gpu = torch.cuda.is_available()
    if name == "cuda" and not gpu:
        raise QCompressError("--device cuda: torch finds no GPU; use --device cpu, or install a torch build for CUDA")
    return "cuda" if gpu and name != "cpu" else "cpu"


def rank_device(name: str, rank: int) -> torch.device:
    """The device of one of several processes. Ranks are spread over all GPUs, unless `name` means the CPU."""
    if pick_device(name) == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", rank % torch.cuda.device_count())

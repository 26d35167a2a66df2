"""The compiled loops over columns on a pretended GPU: one launch each, as of a Triton kernel."""

from typing import Any

import torch
from torch import Tensor

from compress.core import kernels
from tests.pretend.device import PretendedGpu


class OneLaunchKernels:
    """Stands in for the module `compress.core.triton_kernels`: the loops of numba, on the memory of the device."""

    def __init__(self, gpu: PretendedGpu):
        self.gpu = gpu

    def round_block(self, *tensors: Any) -> tuple[Tensor, Tensor]:
        offsets, errors = kernels.round_block(*self.host(tensors))
        return self.gpu.upload(offsets), self.gpu.upload(errors)

    def move_group(self, *tensors: Any) -> None:
        kernels.move_group(*self.host(tensors))

    def host(self, values: tuple[Any, ...]) -> list[Any]:
        self.gpu.launches[self.gpu.place()] += 1
        return [self.gpu.host_view(one) if isinstance(one, torch.Tensor) else one for one in values]

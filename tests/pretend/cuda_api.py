"""Stand-ins for the functions of torch.cuda that ask the driver, while a GPU is pretended."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Protocol
from unittest import mock

import torch
from torch import Tensor

CUDA = torch.device("cuda", 0)
NAME = "Pretended GPU"


class Memory(Protocol):
    total: int
    used: int
    peak: int
    generators: set[int]


class Stream:
    """A stream or an event that does nothing."""

    device, cuda_stream, stream_id, device_index = CUDA, 0, 0, 0

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: Any) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: "Stream") -> float:
        return 1.0

    def record_event(self, event: Any = None) -> "Stream":
        return self

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def make_generator(gpu: Memory, plain: Any) -> type:
    class Generator(plain):  # type: ignore[misc]
        """A generator for either device; its numbers are those of the CPU."""

        def __new__(cls, device: Any = "cpu") -> Any:
            made = plain.__new__(cls)
            made.place = torch.device(device)
            if made.place.type == "cuda":
                gpu.generators.add(made._cdata)
            return made

        def __init__(self, device: Any = "cpu") -> None: ...

        def __del__(self) -> None:
            gpu.generators.discard(self._cdata)

        @property
        def device(self) -> torch.device:
            return CUDA if self.place.type == "cuda" else self.place

    return Generator


def pin_memory(tensor: Tensor, device: Any = None) -> Tensor:
    if tensor.is_cuda:
        raise RuntimeError("only dense CPU tensors can be pinned")
    return tensor.clone()


def functions(gpu: Memory) -> dict[str, Any]:
    """By name, what replaces a function of torch.cuda."""
    state = {"random": torch.Generator().manual_seed(0).get_state()}
    nothing = dict.fromkeys(
        ("_lazy_init", "set_device", "synchronize", "empty_cache", "ipc_collect", "manual_seed", "manual_seed_all"),
        lambda *args, **kwargs: None,
    )
    properties = SimpleNamespace(
        name=NAME, total_memory=gpu.total, major=9, minor=0, multi_processor_count=132, warp_size=32, gcnArchName=""
    )
    return {
        **nothing,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: NAME,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda device=None: (gpu.total - gpu.used, gpu.total),
        "memory_allocated": lambda device=None: gpu.used,
        "memory_reserved": lambda device=None: gpu.used,
        "max_memory_allocated": lambda device=None: gpu.peak,
        "max_memory_reserved": lambda device=None: gpu.peak,
        "reset_peak_memory_stats": lambda device=None: setattr(gpu, "peak", gpu.used),
        "get_rng_state": lambda device="cuda": state["random"].clone(),
        "get_rng_state_all": lambda: [state["random"].clone()],
        "set_rng_state": lambda new, device="cuda": state.update(random=new.clone()),
        "is_current_stream_capturing": lambda: False,
        "Stream": Stream,
        "Event": Stream,
        "current_stream": lambda device=None: Stream(),
        "default_stream": lambda device=None: Stream(),
        "stream": lambda stream: stream or Stream(),
        "_is_in_bad_fork": lambda: False,
    }


def forget_accelerator() -> None:
    """Accelerate stores its device in a class."""
    if module := sys.modules.get("accelerate.state"):
        module.AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def patched_cuda(gpu: Memory) -> Iterator[None]:
    """A context in which torch.cuda answers for the pretended GPU."""
    generator = make_generator(gpu, torch._C.Generator)
    forget_accelerator()
    try:
        with (
            mock.patch.multiple(torch.cuda, create=True, **functions(gpu)),
            mock.patch.object(torch.Tensor, "pin_memory", pin_memory),
            mock.patch.object(torch, "Generator", generator),
            mock.patch.object(torch.backends.cuda, "is_built", lambda: True),
            mock.patch.object(torch.accelerator, "is_available", lambda *args, **kwargs: True),
        ):
            yield
    finally:
        forget_accelerator()

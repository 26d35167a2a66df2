"""A GPU that does not exist: its memory is main memory, and its kernels are those of the CPU.

    with pretended_gpu("compress") as gpu:
        ...  # torch has a device cuda:0

DLPack makes tensors of device kind CUDA over host memory. A fallback for the dispatch key CUDA runs each operator's CPU
kernel on that memory. So tensors are plain, autograd and autocast take their CUDA branches, and values are right. What
a GPU refuses is refused: operands on two devices, `.numpy()`, generators of another device, integer products, and more
memory than `total`. Launches, waits of the host, bytes moved and peak memory are counted.

Streams and events do nothing, so races are not seen. There is no second device, NCCL, CUDA graph or Triton. Random
numbers and the rounding of products are those of the CPU.
"""

import ctypes
import gc
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor

from tests.pretend.cuda_api import patched_cuda
from tests.pretend.guard import load_guard
from tests.pretend.operators import (
    NOT_LAUNCHED,
    Op,
    Signature,
    check_devices,
    each_tensor,
    signature,
    waits,
)

aten = torch.ops.aten
CPU_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
NO_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
HOST = torch.device("cpu")
KDLCUDA, KDLUINT = 2, 1
GIB = 2**30
# memory of tensors on the device, by its address; a tensor may live longer than one pretended GPU
OWNERS: dict[int, tuple[Any, ...]] = {}


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]


class ManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class PretendedGpu:
    """The memory, the kernels and the counters of the device.

    `launches`, `waits` and `moved` (bytes between host and device) count by place: the innermost line of a file whose
    path contains `watch`, such as "compress/core/grid.py:120". `used` and `peak` are bytes on the device.
    """

    def __init__(self, watch: str, total: int):
        self.watch, self.total = watch, total
        self.used = self.peak = 0
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()
        self.generators: set[int] = set()
        self._guard = load_guard()
        self._on_free = ctypes.cast(self._guard.on_free, ctypes.c_void_p)

    def reset(self) -> None:
        """Set all counters to 0, and the peak to the memory in use."""
        self.collect()
        for counter in (self.launches, self.waits, self.moved):
            counter.clear()
        self.peak = self.used

    def collect(self) -> None:
        """Release the memory of tensors that no longer exist."""
        while address := self._guard.take_freed():
            owner = OWNERS.pop(address, None)
            self.used -= owner[0].untyped_storage().nbytes() if owner else 0

    def upload(self, host: Tensor) -> Tensor:
        """A tensor on the device, over the memory of `host`, which no other tensor may use."""
        host = host.detach().resolve_conj().resolve_neg()
        if not host.data_ptr():
            return self.upload(torch.empty(1, dtype=host.dtype)).as_strided(host.shape, host.stride())
        if host.storage_offset() or host.data_ptr() in OWNERS:
            host = host.clone()
        count, address = host.untyped_storage().nbytes(), host.data_ptr()
        self.allocate(count)
        size = (ctypes.c_int64 * 1)(count)
        managed = ManagedTensor(DLTensor(address, KDLCUDA, 0, 1, KDLUINT, 8, 1, size, None, 0), None, self._on_free)
        OWNERS[address] = (host, managed, size)
        raw = torch._C._from_dlpack(new_capsule(ctypes.addressof(managed), b"dltensor", None))
        typed = raw[:0] if host.dtype == torch.uint8 else aten.view.dtype(raw[:0], host.dtype)
        return aten.as_strided.default.redispatch(CPU_KEY, typed, host.shape, host.stride(), 0)

    def allocate(self, count: int) -> None:
        if self.used + count > self.total:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {count} bytes, {self.total - self.used} are free")
        self.used += count
        self.peak = max(self.peak, self.used)

    def host_view(self, tensor: Tensor) -> Tensor:
        """The same memory as a CPU tensor."""
        if not tensor.is_cuda:
            return tensor
        owner = OWNERS.get(tensor.untyped_storage().data_ptr())
        if owner is None:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        storage = owner[0].untyped_storage()
        return torch.empty(0, dtype=tensor.dtype).set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())

    def __call__(self, op: Op, *args: Any, **kwargs: Any) -> Any:
        """Run `op` on the device."""
        spec = signature(op)
        args = tuple(
            torch.tensor(value) if name in spec.tensors and isinstance(value, int | float) else value
            for name, value in zip(spec.names, args, strict=False)
        )
        arguments = dict(zip(spec.names, args, strict=False)) | kwargs
        self.collect()
        self.check_generators(arguments)
        check_devices(spec, arguments)
        self.count(spec, arguments)
        if spec.name == "_fused_sdp_choice":
            return 0  # the attention that any GPU has
        if spec.name == "resize_":
            return self.resize(*args)
        if spec.view:
            return op.redispatch(CPU_KEY, *args, **kwargs)
        return self.run(op, spec, args, kwargs, arguments)

    def run(self, op: Op, spec: Signature, args: Any, kwargs: dict[str, Any], arguments: dict[str, Any]) -> Any:
        """Run an operator's CPU kernel, and put its new results on the device."""
        kwargs.pop("pin_memory", None)
        target = arguments.get("device")
        on_gpu = target is None or torch.device(target).type == "cuda"
        named = {key: HOST if key == "device" and v else each_tensor(v, self.host_view) for key, v in kwargs.items()}
        grown = {
            key: torch.empty(0, dtype=kwargs[key].dtype)
            for key in spec.outs
            if key in kwargs and not kwargs[key].numel()
        }
        with torch._C._ExcludeDispatchKeyGuard(NO_AUTOCAST):
            out = host_kernel(op, *(each_tensor(value, self.host_view) for value in args), **named | grown)
        for key, host in grown.items():
            if host.numel():
                self.host_view(self.resize(arguments[key], host.shape)).copy_(host)
        outs = out if len(spec.returned) > 1 else (out,)
        results = tuple(
            arguments[name] if name else each_tensor(one, self.upload) if on_gpu else one
            for name, one in zip(spec.returned, outs, strict=False)
        )
        return results if len(spec.returned) > 1 else results[0] if results else None

    def check_generators(self, arguments: dict[str, Any]) -> None:
        for value in arguments.values():
            if isinstance(value, torch._C.Generator) and value._cdata not in self.generators:
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")

    def count(self, spec: Signature, arguments: dict[str, Any]) -> None:
        """Count a call of an operator at the line of the watched folder that made it."""
        place = self.place()
        self.launches[place] += spec.name not in NOT_LAUNCHED and not spec.view
        self.waits[place] += waits(spec, arguments)
        if spec.name == "copy_" and arguments["self"].device != arguments["src"].device:
            self.moved[place] += arguments["src"].nbytes
            self.waits[place] += not arguments["self"].is_cuda or not arguments.get("non_blocking")

    def place(self) -> str:
        """The innermost watched line on the stack, or "elsewhere"."""
        frame = sys._getframe()
        while frame is not None:
            _, watched, rest = frame.f_code.co_filename.rpartition(f"/{self.watch}/")
            if watched:
                return f"{self.watch}/{rest}:{frame.f_lineno}"
            frame = frame.f_back  # type: ignore[assignment]
        return "elsewhere"

    def resize(self, tensor: Tensor, size: Any, *_: Any, **__: Any) -> Tensor:
        """Resize a tensor in place, as `out=` does."""
        size = tuple(size)
        storage, offset = tensor.untyped_storage(), tensor.storage_offset()
        strides = torch.empty(size, device="meta").stride()
        if (prod(size) + offset) * tensor.itemsize > storage.nbytes():
            storage, offset = self.upload(torch.empty(size, dtype=tensor.dtype)).untyped_storage(), 0
        aten.set_.source_Storage_storage_offset.redispatch(CPU_KEY, tensor, storage, offset, size, strides)
        return tensor


def host_kernel(op: Op, *args: Any, **kwargs: Any) -> Any:
    """The result of an operator on the CPU. Products with `out_dtype` exist on GPUs only, so they are computed here."""
    if str(op) not in ("aten.mm.dtype", "aten.mm.dtype_out"):
        return op(*args, **kwargs)
    left, right, dtype = args
    product = left.to(dtype) @ right.to(dtype)
    return kwargs["out"].copy_(product) if "out" in kwargs else product


@contextmanager
def pretended_gpu(watch: str = "compress", *, total: int = 80 * GIB) -> Iterator[PretendedGpu]:
    """A context in which torch has a GPU with `total` bytes of memory. See `PretendedGpu` for `watch`."""
    if torch.cuda.is_available():
        raise RuntimeError("there already is a GPU")
    gpu = PretendedGpu(watch, total)
    with ExitStack() as stack:
        fallback, kernels = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
        stack.callback(fallback._destroy)
        stack.callback(kernels._destroy)
        fallback.fallback(gpu, "CUDA")
        for op in (aten.copy_.default, aten.fill_.Scalar, aten.fill_.Tensor):  # torch registers others for CUDA
            name = str(op).removeprefix("aten.").removesuffix(".default")
            kernels.impl(name, lambda *args, _op=op, **kwargs: gpu(_op, *args, **kwargs), "CUDA")
        gpu._guard.set_hooks(True)
        stack.callback(gpu._guard.set_hooks, False)
        stack.callback(gpu.collect)
        stack.callback(gc.collect)
        stack.enter_context(patched_cuda(gpu))
        yield gpu

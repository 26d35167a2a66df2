"""Build and load `guard.cpp`, which makes torch's C++ code accept a CUDA device on a machine without one."""

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_suffix(".cpp")


def missing() -> str | None:
    """The reason why no GPU can be pretended here, or None."""
    if torch.version.cuda or torch.version.hip:
        return "this torch is built for GPUs: run `pytest -m gpu` on a machine that has one"
    return None if shutil.which("g++") else "g++ is not installed, and it compiles the pretended GPU"


@cache
def load_guard() -> ctypes.CDLL:
    """The compiled library, with its guard registered.

    It must be loaded before the first backward pass of the process, because the autograd engine counts devices once.
    """
    library = ctypes.CDLL(str(built()))
    library.take_freed.restype = ctypes.c_void_p
    library.register_guard()
    return library


def built() -> Path:
    """The compiled library, in the folder for temporary files. Its name depends on the source and torch's version."""
    root, source = Path(torch.__file__).parent, SOURCE.read_bytes()
    digest = hashlib.sha256(source + torch.__version__.encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"qcompress-pretended-gpu-{digest}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            flags = ["-shared", "-fPIC", "-std=c++20", f"-I{root}/include", f"-L{root}/lib", "-lc10", "-ltorch_cpu"]
            subprocess.run(["g++", str(SOURCE), "-o", str(made), *flags], check=True)
            made.rename(library)
    return library

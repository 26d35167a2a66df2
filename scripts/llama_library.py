"""llama.cpp's own quantizer, from the prebuilt library that the npm package @node-llama-cpp/linux-x64 contains.

`quantize` calls `llama_model_quantize`, as the program llama-quantize does. The structures are those of llama.h in
llama.cpp v0.5.0.
"""

import ctypes
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from compress.core.errors import QCompressError

PACKAGE, RELEASE = "@node-llama-cpp/linux-x64@3.22.1", "llama.cpp v0.5.0"
LIBRARIES = ("libggml-base.so", "libggml.v0.5.0.so", "libllama.v0.5.0.so")  # each needs those before it
TYPES = {"Q4_0": 2, "Q4_1": 3, "Q4_K_S": 14, "Q4_K_M": 15, "IQ4_XS": 30}  # enum llama_ftype
GGML_TYPE_F16 = 1


class Importance(ctypes.Structure):
    """struct llama_model_imatrix_data: a tensor's name, and the mean square of each of its inputs."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t))


class Settings(ctypes.Structure):
    """struct llama_model_quantize_params."""

    _fields_ = (
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int),
        ("output_tensor_type", ctypes.c_int),
        ("token_embedding_type", ctypes.c_int),
        *((name, ctypes.c_bool) for name in ("allow_requantize", "quantize_output_tensor", "only_copy")),
        *((name, ctypes.c_bool) for name in ("pure", "keep_split", "dry_run")),
        ("imatrix", ctypes.POINTER(Importance)),
        *((name, ctypes.c_void_p) for name in ("kv_overrides", "tt_overrides", "prune_layers")),
    )


def fetch_library(folder: Path) -> Path:
    """The folder with llama.cpp's libraries, downloaded by npm if it is missing."""
    libraries = folder / "package" / "bins" / "linux-x64"
    if not libraries.exists():
        if shutil.which("npm") is None:
            raise QCompressError(f"{PACKAGE}: npm is missing; install it, for example with apt install npm")
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True)
        (archive,) = folder.glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    return libraries


def load_library(folder: Path) -> ctypes.CDLL:
    """libllama, with the types of the two functions that `quantize` calls."""
    *_, library = [ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL) for name in LIBRARIES]
    library.llama_model_quantize_default_params.restype = Settings
    library.llama_model_quantize.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Settings))
    library.llama_model_quantize.restype = ctypes.c_uint32
    return library


def importance_array(importance: Mapping[str, np.ndarray]) -> ctypes.Array[Importance]:
    """The importance matrix as llama.cpp reads it: one entry per tensor, and an empty one at the end."""
    entries = [
        Importance(name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), len(values))
        for name, values in importance.items()
    ]
    return (Importance * (len(entries) + 1))(*entries)


def quantize(folder: Path, plain: Path, out: Path, kind: str, importance: Mapping[str, np.ndarray]) -> None:
    """Quantize the 16-bit file `plain` to one of TYPES. The embedding stays in 16 bits.

    `importance` has the mean square of each input, float32, by the name of the tensor. Raises QCompressError if
    llama.cpp fails.
    """
    library = load_library(folder)
    settings = library.llama_model_quantize_default_params()
    array = importance_array(importance)
    settings.ftype, settings.token_embedding_type, settings.nthread = TYPES[kind], GGML_TYPE_F16, 1
    settings.imatrix = array
    partial = out.with_suffix(".partial")
    if library.llama_model_quantize(str(plain).encode(), str(partial).encode(), ctypes.byref(settings)):
        raise QCompressError(f"{plain}: llama.cpp could not quantize it to {kind}")
    partial.rename(out)

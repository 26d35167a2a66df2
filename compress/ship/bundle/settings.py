"""The settings of `qcompress ship`."""

import re
from dataclasses import dataclass
from pathlib import Path

from compress.core.config import KV_DTYPES
from compress.core.errors import QCompressError
from compress.core.options import option

RUNTIMES = ("vllm", "llama.cpp")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
IMAGE = re.compile(r"[a-z0-9][\w.:/-]*(@sha256:[0-9a-f]{64})?")


@dataclass(frozen=True)
class ShipConfig:
    """Where a bundle will run, what it must hold at once, and what it carries."""

    hardware: str = option("", "Board or GPU that will run the model.", metavar="NAME")
    runtime: str = option(
        "vllm", "Program that serves the model. llama.cpp gets the same weights as a .gguf file.", choices=RUNTIMES
    )
    name: str | None = option(
        None, "Name by which clients call the model.", default_text="name of the checkpoint's folder", metavar="NAME"
    )
    context: int = option(2048, "Tokens of the longest request, with its answer.", group="Limits", minimum=256)
    requests: int = option(1, "Number of requests at once.", group="Limits", minimum=1)
    kv_cache_dtype: str = option(
        "auto", "Dtype of the KV cache. auto: the model's dtype.", group="Limits", choices=KV_DTYPES
    )
    tensor_parallel_size: int | None = option(
        None,
        "Number of GPUs that share the model.",
        group="Resources",
        minimum=1,
        default_text="all GPUs of the board",
    )
    chat: bool = option(False, "Add the chat page of `qcompress serve` as a second container.")
    image: str | None = option(
        None,
        "Container image of the runtime, such as NAME@sha256:DIGEST.",
        default_text="the image known for the board",
        metavar="REFERENCE",
    )
    image_file: Path | None = option(
        None, "Archive of `docker save` with the image. The device then needs no registry.", is_path=True, metavar="TAR"
    )
    history: Path | None = option(
        None, "History with results of this checkpoint, which bundle.json repeats.", group="Report", is_path=True
    )

    def __post_init__(self) -> None:
        if self.name is not None and not NAME.fullmatch(self.name):
            raise QCompressError(f"--name {self.name!r}: use letters, digits, '.', '_' and '-', at most 63")
        if self.image is not None and not IMAGE.fullmatch(self.image):
            raise QCompressError(f"--image {self.image!r}: is no image reference; give NAME:TAG or NAME@sha256:DIGEST")
        if self.image is not None and self.image_file is not None:
            raise QCompressError("--image-file: the archive names its image; leave --image out")
        if self.runtime == "llama.cpp" and (self.tensor_parallel_size or 1) > 1:
            raise QCompressError("--tensor-parallel-size: llama.cpp splits a model in another way; leave it out")
        if self.runtime == "llama.cpp" and self.kv_cache_dtype != "auto":
            raise QCompressError(
                f"--kv-cache-dtype {self.kv_cache_dtype}: llama.cpp has another KV cache; leave it out"
            )

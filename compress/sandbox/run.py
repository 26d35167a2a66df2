"""Run code and its tests in a contained process. Linux only; `containment` lists the layers of this machine."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from compress.sandbox.layers import Limits

ROOT = Path(__file__).parents[2]
BOOT = (
    "import sys; sys.path.insert(0, sys.argv.pop()); from compress.sandbox.child import main; sys.path.pop(0); main()"
)
ENVIRONMENT = {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}  # the whole environment of the child
DEFAULT = Limits()


class SandboxError(RuntimeError):
    """The sandbox did not start, so the code did not run."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    `status` is passed, failed (a test), error (an exception), refused (a forbidden action), memory, cpu, timeout,
    output, killed (a signal) or exited (before the end of the tests). `layers` are those of `contain`.
    """

    status: str
    detail: str
    layers: dict[str, str]


def run_python(code: str, tests: list[str], limits: Limits = DEFAULT) -> Outcome:
    """Run `code`, then each of `tests`, statements that raise on failure. Raises SandboxError."""
    if not sys.platform.startswith("linux"):
        raise SandboxError(f"the sandbox for generated code needs Linux, not {sys.platform}")
    with tempfile.TemporaryDirectory(prefix="qcompress-") as folder, tempfile.TemporaryFile() as sink:
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as channel:
            request = {"code": code, "tests": tests, "folder": folder, "channel": writer, "limits": asdict(limits)}
            returncode = _run_child(request, writer, sink.fileno(), limits.seconds)
            lines = channel.read().splitlines()
    if not lines:
        raise SandboxError(f"the contained process ended with code {returncode} before it started the code")
    return _outcome(lines, returncode)


def _run_child(request: dict[str, object], writer: int, sink: int, seconds: float) -> int | None:
    """The child's exit code, or None if it was killed at the time limit. Closes `writer`."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-c", BOOT, str(ROOT)],
        stdin=subprocess.PIPE,
        stdout=sink,
        stderr=subprocess.DEVNULL,
        pass_fds=(writer,),
        env=ENVIRONMENT,
        start_new_session=True,
    )
    os.close(writer)
    try:
        child.communicate(json.dumps(request).encode(), timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return None
    return child.returncode


def _outcome(lines: list[bytes], returncode: int | None) -> Outcome:
    """The outcome from the child's lines and exit code."""
    layers = json.loads(lines[0])
    if returncode is None:
        return Outcome("timeout", "exceeded the time limit", layers)
    if returncode == -signal.SIGXCPU:
        return Outcome("cpu", "exceeded the CPU time limit", layers)
    if returncode < 0:
        return Outcome("killed", f"ended by signal {-returncode}", layers)
    try:
        (last,) = lines[1:]
        return Outcome(layers=layers, **json.loads(last))
    except (ValueError, TypeError):  # no line, or the code wrote into the channel
        return Outcome("exited", f"ended with code {returncode} before the end of its tests", layers)


@cache
def containment() -> dict[str, str]:
    """The state of each layer on this machine; "none: reason" for a missing one. Raises SandboxError."""
    return run_python("", []).layers

"""Run code against tests in a process of its own. Linux only; `containment` says what this machine's kernel gives."""

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
ENVIRONMENT = {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}  # and nothing of ours
DEFAULT = Limits()


class SandboxError(RuntimeError):
    """The sandbox itself did not start: nothing is known of the code."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    `status` is passed, failed (a test), error (an exception), refused (something forbidden), memory, cpu, timeout,
    output, killed (a signal) or exited (before the tests were done). `layers` is what contained it.
    """

    status: str
    detail: str
    layers: dict[str, str]


def run_python(code: str, tests: list[str], limits: Limits = DEFAULT) -> Outcome:
    """Run `code`, then each of `tests` (statements that raise when they fail). Raises SandboxError."""
    if not sys.platform.startswith("linux"):
        raise SandboxError(f"generated code is contained on Linux only, this is {sys.platform}")
    with tempfile.TemporaryDirectory(prefix="qcompress-") as folder, tempfile.TemporaryFile() as sink:
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as channel:
            request = {"code": code, "tests": tests, "folder": folder, "channel": writer, "limits": asdict(limits)}
            returncode = _run_child(request, writer, sink.fileno(), limits.seconds)
            lines = channel.read().splitlines()
    if not lines:
        raise SandboxError(f"the contained process ended with {returncode} before it began")
    return _outcome(lines, returncode)


def _run_child(request: dict[str, object], writer: int, sink: int, seconds: float) -> int | None:
    """The child's exit code, or None when it was killed for its time. Closes `writer`."""
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
    layers = json.loads(lines[0])
    if returncode is None:
        return Outcome("timeout", "ran too long by the clock", layers)
    if returncode == -signal.SIGXCPU:
        return Outcome("cpu", "used all its CPU time", layers)
    if returncode < 0:
        return Outcome("killed", f"ended by signal {-returncode}", layers)
    try:
        (last,) = lines[1:]
        return Outcome(layers=layers, **json.loads(last))
    except (ValueError, TypeError):  # nothing there, or the code wrote into our channel
        return Outcome("exited", f"ended with code {returncode} before its tests were done", layers)


@cache
def containment() -> dict[str, str]:
    """What each layer gives on this machine; "none: why" for one that it lacks. Raises SandboxError."""
    return run_python("", []).layers

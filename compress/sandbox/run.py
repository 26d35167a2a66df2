"""Run a function in a contained process: bytes in, bytes out. Linux only.

    run("package.module:function", data, Limits(seconds=60), imports=["pypdf"])

The function can compute and read Python's library. It can change no file, reach no other process and no network, and it
ends with this process. `containment` lists the layers of this machine.
"""

import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

from compress.sandbox.layers import Limits

ROOT = Path(__file__).parents[2]
BOOT = (
    "import sys; sys.path.insert(0, sys.argv.pop()); from compress.sandbox.child import main; sys.path.pop(0); main()"
)
ENVIRONMENT = {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
DEFAULT = Limits()
HEADER = 64 * 1024  # bytes of the channel beside the result
START = 60.0  # seconds in which the imports and the layers must be done
PATIENCE = 2.0  # seconds in which a process that has closed its channel must end


class SandboxError(RuntimeError):
    """The sandbox did not start, so nothing ran."""


@dataclass(frozen=True)
class Result:
    """How a run ended.

    `status` is returned, error (an exception), refused (a forbidden action), memory, cpu, timeout, output (too many
    bytes), killed (a signal) or exited (without returning). `output` is empty unless the function returned. `layers`
    has the state of each layer.
    """

    status: str
    output: bytes
    detail: str
    layers: dict[str, str]


def run(function: str, data: bytes, limits: Limits = DEFAULT, imports: Sequence[str] = ()) -> Result:
    """Call "module:function" with `data` in a contained process. Raises SandboxError if the process does not start.

    The modules `imports` are loaded first, while the process can read all files. With `imports`, it can read installed
    packages later too.
    """
    with Contained(function, data, limits, imports) as process:
        return process.result(process.start())


class Contained:
    """One contained process. It is killed at the end of the `with` block."""

    def __init__(
        self,
        function: str,
        data: bytes,
        limits: Limits = DEFAULT,
        imports: Sequence[str] = (),
        descriptors: Sequence[int] = (),
    ) -> None:
        """Start the process, which inherits `descriptors`."""
        if not sys.platform.startswith("linux"):
            raise SandboxError(f"the sandbox for generated code needs Linux, not {sys.platform}")
        self.limits = limits
        self.received = bytearray()
        reader, writer = os.pipe()
        self.channel = os.fdopen(reader, "rb", buffering=0)
        packages = sorted({os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")})
        request = {
            "function": function,
            "imports": list(imports),
            "path": [str(ROOT), *filter(None, sys.path)],
            "packages": packages if imports else [],
            "channel": writer,
            "parent": os.getpid(),
            "limits": asdict(limits),
        }
        with os.fdopen(os.memfd_create("request"), "w+b") as stdin, os.fdopen(writer):
            stdin.write(json.dumps(request).encode() + b"\n" + data)
            stdin.seek(0)
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", BOOT, str(ROOT)],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(writer, *descriptors),
                env=ENVIRONMENT,
                start_new_session=True,
            )

    def __enter__(self) -> "Contained":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        self.channel.close()

    def kill(self) -> None:
        """Kill the process and its threads."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def start(self) -> dict[str, str]:
        """Wait until the layers are applied. Returns each layer's state. Raises SandboxError if a layer fails."""
        self._read(time.monotonic() + START, lambda: b"\n" in self.received)
        line, _, rest = bytes(self.received).partition(b"\n")
        self.received = bytearray(rest)
        layers = parse_header(line)
        if not layers or "missing" in layers:
            code = self.exit_code(PATIENCE)
            reason = layers.get("missing", f"it ended with code {code} before it started the code")
            raise SandboxError(f"the contained process did not start: {reason}")
        return layers

    def result(self, layers: dict[str, str]) -> Result:
        """Wait for the end of the run, and return its result. `layers` is what `start` returned."""
        deadline = time.monotonic() + self.limits.seconds
        largest = self.limits.output + HEADER
        if not self._read(deadline, lambda: len(self.received) > largest):
            return Result("timeout", b"", "exceeded the time limit", layers)
        if len(self.received) > largest:
            return Result("output", b"", f"wrote more than {self.limits.output:,} bytes", layers)
        code = self.exit_code(PATIENCE)
        line, _, output = bytes(self.received).partition(b"\n")
        header = parse_header(line)
        if code == 0 and header.keys() == {"status", "detail"}:
            return Result(header["status"], output, header["detail"], layers)
        status, detail = describe_exit(code)
        return Result(status, b"", detail, layers)

    def exit_code(self, patience: float) -> int | None:
        """Wait up to `patience` seconds for the exit code. After that, kill the process and return None."""
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def _read(self, deadline: float, enough: Callable[[], bool]) -> bool:
        """Read the channel until `enough()` is True or the channel ends. Returns False if the deadline comes first."""
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        while not enough():
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return False
            piece = self.channel.read(HEADER)
            if not piece:
                return True
            self.received += piece
        return True


def parse_header(line: bytes) -> dict[str, str]:
    """The JSON object in a line, if all its values are texts. {} for any other line, which the sandbox never writes."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if type(value) is dict and all(type(text) is str for text in value.values()) else {}


def describe_exit(code: int | None) -> tuple[str, str]:
    """The status and detail of a process that ended without a result. `code` is None if `exit_code` killed it."""
    if code == -signal.SIGXCPU:
        return "cpu", "exceeded the CPU time limit"
    if code is not None and code < 0:
        return "killed", f"ended by signal {-code}"
    return "exited", f"ended with code {code} before the function returned"


@cache
def containment() -> dict[str, str]:
    """The state of each layer on this machine. Raises SandboxError if one is missing."""
    return run("compress.sandbox.child:echo", b"").layers

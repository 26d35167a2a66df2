"""An engine as a child process: started, watched, restarted once, and ended with this process."""

import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from compress.core.atomic import file_errors
from compress.core.file_kind import ENGINE_LOG, LOG_BEGINNING
from compress.core.guard import guarded
from compress.core.report import Report, silent
from compress.runtimes.vllm_offline import cause as first_exception
from compress.serve.engine.command import EngineCommand
from compress.serve.settings import KEY_VARIABLE, TOKEN_VARIABLE

HEALTH_SECONDS = 0.5  # between two health checks of a starting engine
EXIT_SECONDS = 0.1  # between two looks at a running engine
STEADY_SECONDS = 600.0  # after so long, an end counts as the first one again
CLOSE_SECONDS = 15.0
PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL for an engine whose service has ended
TAIL_BYTES = 200_000


class EngineProcess:
    """One engine. `status` is starting, ready, restarting or ended, and `cause` explains the last end in one line.

    `healthy` is True if the engine's server answers. `report` receives a row whenever the status changes. The engine's
    output goes to `log`; the log of the previous run is kept beside it.
    """

    def __init__(
        self,
        name: str,
        command: EngineCommand,
        log: Path,
        healthy: Callable[[], Awaitable[bool]],
        report: Report = silent,
    ) -> None:
        self.name, self.command, self.log = name, command, log
        self.healthy, self.report = healthy, report
        self.status, self.cause = "starting", ""
        self.process: subprocess.Popen[bytes] | None = None
        self.closing = False
        prepare_log(log)
        self.log_start = 0  # byte of the log at which the output of this run begins

    async def run(self) -> None:
        """Start the engine and watch it.

        Returns when it has ended before it was ready, or for the second time within STEADY_SECONDS.
        """
        restarts = 0
        begin_log(self.log, self.name)
        while not self.closing:
            started = time.monotonic()
            code = await self.run_once()
            if self.closing:
                return
            self.cause = describe_end(code, tail(self.log, self.log_start))
            ready = self.status == "ready"
            restarts = 0 if time.monotonic() - started > STEADY_SECONDS else restarts
            self.set_status("restarting" if ready and not restarts else "ended")
            if self.status == "ended":
                return
            restarts += 1

    async def run_once(self) -> int:
        """Start the process, wait until it is ready, and wait until it ends. Returns its exit code."""
        started = time.monotonic()
        process = self.process = self.start()
        while process.poll() is None and not await self.healthy():
            await anyio.sleep(HEALTH_SECONDS)
        if process.poll() is None:
            self.cause = ""
            self.set_status("ready", seconds=round(time.monotonic() - started, 1))
        while process.poll() is None:
            await anyio.sleep(EXIT_SECONDS)
        return process.returncode

    def start(self) -> "subprocess.Popen[bytes]":
        self.command.socket.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.log_start = log.tell()
            return subprocess.Popen(
                guarded(self.command.arguments, PATIENCE),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment(), **self.command.variables},
                start_new_session=True,
            )

    def set_status(self, status: str, **facts: object) -> None:
        self.status = status
        self.report({"engine": self.name, "status": status} | ({"cause": self.cause} if self.cause else {}) | facts)

    async def close(self) -> None:
        """End the process and its children. The engine gets SIGTERM first, and SIGKILL if it does not end."""
        self.closing = True
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        with anyio.move_on_after(CLOSE_SECONDS):
            while self.process.poll() is None:
                await anyio.sleep(EXIT_SECONDS)
            return
        self.process.kill()
        self.process.wait()


def environment() -> dict[str, str]:
    """This process's environment variables without the keys of the service, which an engine does not need."""
    return {name: value for name, value in os.environ.items() if name not in (TOKEN_VARIABLE, KEY_VARIABLE)}


def old_log(log: Path) -> Path:
    """The file that keeps the log of the previous run. No model has it as its log, because those end in .log."""
    return log.with_name(f"{log.name}.old")


def check_log(log: Path) -> None:
    """Raises QCompressError if a file of another program is in the place of a log, or of the log before it."""
    ENGINE_LOG.check(log)
    ENGINE_LOG.check(old_log(log))


def prepare_log(log: Path) -> None:
    """Create the folder of a log, and an empty log if there is none. Raises QCompressError if this is impossible."""
    with file_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch(mode=0o600)


def begin_log(log: Path, name: str) -> None:
    """Keep the log of the previous run, and begin a new one that only this user can read."""
    check_log(log)
    with file_errors(log):
        if log.exists() and log.stat().st_size:
            log.replace(old_log(log))
        log.touch(mode=0o600)
        log.write_text(f"{LOG_BEGINNING}{name}\n")


def tail(log: Path, start: int) -> str:
    """The last TAIL_BYTES of a log, from the byte `start` on."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - TAIL_BYTES))
        return file.read().decode("utf-8", "replace")


def describe_end(code: int, output: str) -> str:
    """Why an engine ended: the signal, or the first exception in its output."""
    number = code - 128 if code > 128 else -code
    if number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL):
        hint = "; the system may lack memory" if number == signal.SIGKILL else ""
        return f"it was ended by {signal.Signals(number).name}{hint}"
    return first_exception(output)[:500] or f"it ended with code {code}"

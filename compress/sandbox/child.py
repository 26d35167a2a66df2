"""The contained process: reads {code, tests, folder, limits}, drops its rights, runs the code, writes two JSON lines.

The first line lists the layers, the second is {"status", "detail"}. Without a second line the tests did not finish,
whatever the exit code.
"""

import builtins
import errno
import json
import os
import sys
from typing import Any

from compress.sandbox.layers import Limits, contain, unload_tools

DETAIL = 200  # characters


def main() -> None:
    """Run one request. Never returns: `_exit` also ends threads that the code started."""
    request = json.load(sys.stdin)
    channel = request["channel"]
    os.chdir(request["folder"])
    contained = contain(request["folder"], Limits(**request["limits"]))
    unload_tools()
    send(channel, contained)
    send(channel, run_tests(request["code"], request["tests"]))
    os._exit(0)


def send(channel: int, value: dict[str, str]) -> None:
    os.write(channel, (json.dumps(value) + "\n").encode())


def run_tests(code: str, tests: list[str]) -> dict[str, str]:
    """Run the code, then each test in the same namespace. The status is "passed" or that of the first failure."""
    names: dict[str, Any] = {"__name__": "answer", "__builtins__": builtins}
    for source in (code, *tests):
        try:
            exec(compile(source, "<answer>", "exec"), names)
            sys.stdout.flush()
        except BaseException as error:  # also SystemExit and KeyboardInterrupt, which the code can raise
            return {"status": status_of(error), "detail": describe(error, source if source is not code else "")}
    return {"status": "passed", "detail": ""}


def status_of(error: BaseException) -> str:
    """The status of an exception: a sandbox limit, a failed test, or an error in the code."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return "memory"
    if isinstance(error, PermissionError) or "can't start new thread" in str(error):
        return "refused"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "output"
    if isinstance(error, SystemExit):
        return "exited"
    return "failed" if isinstance(error, AssertionError) else "error"


def describe(error: BaseException, test: str) -> str:
    """The exception and the test that raised it, in at most DETAIL characters."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return (f"{test}: {text}" if test else text)[:DETAIL]

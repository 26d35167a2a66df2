"""The contained process: reads {code, tests, folder, limits}, gives up its rights, runs, and writes two lines of JSON.

The first says what contains it, the second {"status", "detail"}. A process that ends without the second one did not
finish its tests, whatever its exit code.
"""

import builtins
import errno
import json
import os
import sys
from typing import Any

from compress.sandbox.layers import Limits, contain, forget_tools

DETAIL = 200  # characters


def main() -> None:
    """Never returns: threads that the code left behind end with the process."""
    request = json.load(sys.stdin)
    channel = request["channel"]
    os.chdir(request["folder"])
    contained = contain(request["folder"], Limits(**request["limits"]))
    forget_tools()
    send(channel, contained)
    send(channel, verdict(request["code"], request["tests"]))
    os._exit(0)


def send(channel: int, value: dict[str, str]) -> None:
    os.write(channel, (json.dumps(value) + "\n").encode())


def verdict(code: str, tests: list[str]) -> dict[str, str]:
    """Run the code, then each test in the same names: passed, or how the first of them ended."""
    names: dict[str, Any] = {"__name__": "answer", "__builtins__": builtins}
    for source in (code, *tests):
        try:
            exec(compile(source, "<answer>", "exec"), names)
            sys.stdout.flush()
        except BaseException as error:  # SystemExit and KeyboardInterrupt too: the code raised them
            return {"status": status_of(error), "detail": told(error, source if source is not code else "")}
    return {"status": "passed", "detail": ""}


def status_of(error: BaseException) -> str:
    """What an exception means: a limit of the sandbox, a wrong result, or a fault of the code."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return "memory"
    if isinstance(error, PermissionError) or "can't start new thread" in str(error):
        return "refused"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "output"
    if isinstance(error, SystemExit):
        return "exited"
    return "failed" if isinstance(error, AssertionError) else "error"


def told(error: BaseException, test: str) -> str:
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return (f"{test}: {words}" if test else words)[:DETAIL]

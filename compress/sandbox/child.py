"""The contained process: it reads a request and data from stdin, gives up its rights, and calls one function.

It writes to its channel: a line with the layers, a line with the status, and the bytes that the function returned. If
the second line is missing, the function did not return, whatever the exit code.
"""

import errno
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from compress.sandbox.layers import ENDING, Limits, apply, contain, end_with

DETAIL = 200  # characters


def main() -> None:
    """Run one request. Never returns."""
    with os.fdopen(0, "rb", closefd=False) as stdin:
        request, data = json.loads(stdin.readline()), stdin.read()
    channel, limits = request["channel"], Limits(**request["limits"])
    try:
        apply(ENDING, lambda: end_with(request["parent"]))  # again in `contain`, since new namespaces undo it
        function = load(request)
        layers = contain(limits, request["parent"], request["packages"])
    except Exception as error:
        write(channel, {"missing": describe(error)})
        os._exit(1)
    write(channel, layers)
    write(channel, *call(function, data, limits))
    os._exit(0)


def load(request: dict[str, Any]) -> Callable[[bytes], bytes]:
    """Import all modules of the request, and return its function. Then the channel is the only writable file."""
    own, sys.path = sys.path, request["path"]
    for name in request["imports"]:
        importlib.import_module(name)
    module, _, name = request["function"].partition(":")
    function: Callable[[bytes], bytes] = getattr(importlib.import_module(module), name)
    sys.path = [*own, *request["packages"]]
    os.chdir("/")
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return function


def call(function: Callable[[bytes], bytes], data: bytes, limits: Limits) -> tuple[dict[str, str], bytes]:
    """Call the function. Returns the status of the call, and the bytes that the function returned."""
    try:
        output = function(data)
        if type(output) is not bytes:
            raise TypeError(f"{function.__name__} must return bytes, not {type(output).__name__}")
    except BaseException as error:  # also SystemExit and KeyboardInterrupt
        return {"status": status_of(error), "detail": describe(error)}, b""
    if len(output) > limits.output:
        return {"status": "output", "detail": f"{len(output):,} bytes, more than {limits.output:,}"}, b""
    return {"status": "returned", "detail": ""}, output


def write(channel: int, header: dict[str, str], output: bytes = b"") -> None:
    """Write a header as one line, and all bytes of the output."""
    rest = memoryview(json.dumps(header).encode() + b"\n" + output)
    while rest:
        rest = rest[os.write(channel, rest) :]


def status_of(error: BaseException) -> str:
    """The status of an exception: "memory", "refused", "exited", "failed" (by an assertion) or "error"."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return "memory"
    if isinstance(error, PermissionError) or "can't start new thread" in str(error):
        return "refused"
    if isinstance(error, SystemExit):
        return "exited"
    return "failed" if isinstance(error, AssertionError) else "error"


def describe(error: BaseException, where: str = "") -> str:
    """The exception as text, after `where`, in at most DETAIL characters."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return (f"{where}: {text}" if where else text)[:DETAIL]


def echo(data: bytes) -> bytes:
    """Return the data. `containment` runs this to test whether this machine can contain a process."""
    return data

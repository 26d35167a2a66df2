"""Run a module as a program that ends with the process that started it, whatever ends that process.

    python -m compress.sandbox.worker PARENT MODULE ARGUMENTS

The kernel kills the program when the process with the id PARENT ends. If the program leads a process group, a guard
process then kills the rest of the group, such as children of vLLM. Linux only; elsewhere the module just runs.
"""

import os
import runpy
import signal
import sys
from typing import Any

from compress.sandbox.kernel import PR_SET_PDEATHSIG, prctl
from compress.sandbox.layers import end_with

DESCRIPTORS = 1024  # all that a guard could have inherited


def worker_command(module: str, *arguments: str) -> list[str]:
    """The command that runs `module` with these arguments until this process ends."""
    return [sys.executable, "-m", "compress.sandbox.worker", str(os.getpid()), module, *arguments]


def start_guard() -> None:
    """Fork a process that kills this process group as soon as this process ends."""
    worker = os.getpid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, kill_group)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.closerange(0, DESCRIPTORS)  # else the pipes of the worker would stay open when it ends
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        while os.getppid() == worker:
            signal.pause()
        kill_group()


def kill_group(*arguments: Any) -> None:
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    parent, module, *arguments = sys.argv[1:]
    if sys.platform.startswith("linux"):
        end_with(int(parent))
        if os.getpgrp() == os.getpid():
            start_guard()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""Run a command that ends with the process that started it, whatever ends that process.

    python guard.py PARENT PATIENCE COMMAND...

The command replaces this process. The kernel sends it a signal when the process with the id PARENT ends: SIGKILL, or
SIGTERM if PATIENCE, in seconds, is above 0. If the command leads a process group, a watcher then kills the rest of
the group, such as children of vLLM. The watcher also kills the group when the command ends or is killed. Linux only;
elsewhere the command just runs. This file imports nothing of qcompress, so it starts at once and in any Python.
"""

import ctypes
import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1
DESCRIPTORS = 1024  # all that a watcher could have inherited


def guarded(command: list[str], patience: float = 0.0) -> list[str]:
    """The command line that runs `command` until this process ends. `patience` is in seconds, after SIGTERM."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(patience), *command]


def worker_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a Python module with these arguments until this process ends."""
    return guarded([sys.executable, "-m", module, *arguments])


def end_with_parent(number: int) -> None:
    """Make the kernel send this process a signal when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def start_watcher(parent: int, patience: float) -> None:
    """Fork a process that kills this process group as soon as this process or `parent` ends.

    If `parent` ends, this process has `patience` seconds to end by itself.
    """
    descriptors = [os.pidfd_open(process) for process in (os.getpid(), parent)]
    if os.fork() == 0:
        watch(descriptors[0], descriptors[1], patience)


def watch(command: int, parent: int, patience: float) -> None:
    """Wait for the end of a command or its parent, both as pidfds, and kill the own process group."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for descriptor in set(range(DESCRIPTORS)) - {command, parent}:  # else the command's pipes would stay open
        os.closerange(descriptor, descriptor + 1)
    if command not in wait_for([command, parent]):
        wait_for([command], patience)
    os.killpg(0, signal.SIGKILL)


def wait_for(processes: list[int], seconds: float | None = None) -> list[int]:
    """Wait until one of the processes, given as pidfds, has ended. Returns those that have; [] after `seconds`."""
    poll = select.poll()
    for process in processes:
        poll.register(process, select.POLLIN)
    return [process for process, _ in poll.poll(None if seconds is None else seconds * 1000)]


def main(parent: int, patience: float, command: list[str]) -> None:
    if sys.platform.startswith("linux"):
        if os.getpgrp() == os.getpid():
            start_watcher(parent, patience)
        end_with_parent(signal.SIGTERM if patience else signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel knew
            sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])

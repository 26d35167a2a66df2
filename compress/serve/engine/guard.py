"""Run a command that ends when this process's parent ends: python guard.py PARENT COMMAND...

vLLM starts processes of its own, which outlive it when it is killed. Here the command leads a process group. The group
is killed when the command ends, when the parent ends (the kernel then sends SIGTERM), and when this process ends.
This file imports nothing of qcompress, so that it starts at once and in any Python.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1
PATIENCE = 10  # seconds between SIGTERM and SIGKILL


def end_with_parent(number: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def main(parent: int, command: list[str]) -> int:
    """The exit code of the command; 128 plus the number of the signal that ended it."""
    end_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which then ends this process
    if os.getppid() != parent:
        return 1
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=lambda: end_with_parent(signal.SIGKILL))

    def stop(number: int, frame: FrameType | None) -> None:
        child.send_signal(signal.SIGTERM)
        signal.alarm(PATIENCE)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGALRM, lambda number, frame: kill_group(child.pid))
    code = child.wait()
    kill_group(child.pid)
    return code if code >= 0 else 128 - code


def kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))

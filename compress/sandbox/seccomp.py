"""A seccomp filter that allows the calls in `syscalls.py`; all others fail with "not permitted". It cannot be removed.

https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

import ctypes
import errno
import os

from compress.sandbox.kernel import prctl
from compress.sandbox.syscalls import ABSENT, ALLOWED, AUDIT_ARCH, CHECKED, MACHINES, THREAD, Checked

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 22, 38, 2
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF opcodes
NUMBER_AT, ARCH_AT, FIRST_ARGUMENT_AT, ARGUMENT_SIZE = 0, 4, 16, 8  # bytes into struct seccomp_data

Step = tuple[int, int, int, int]  # opcode, steps to skip when true, when false, operand

ALLOW: Step = (RETURN, 0, 0, 0x7FFF0000)
KILL: Step = (RETURN, 0, 0, 0x80000000)
REFUSE: Step = (RETURN, 0, 0, 0x00050000 | errno.EPERM)
REPORT_ABSENT: Step = (RETURN, 0, 0, 0x00050000 | errno.ENOSYS)


class Filter(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("operand", ctypes.c_uint))


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filters", ctypes.POINTER(Filter)))


def steps(machine: int, *, threads: bool = False) -> list[Step]:
    """The steps of the filter. `machine` is a machine type's number in MACHINES. `threads` allows new threads."""
    allowed = [numbers for calls in ALLOWED.values() for numbers in calls.values()]
    program = [(LOAD, 0, 0, ARCH_AT), (EQUAL, 1, 0, AUDIT_ARCH[machine]), KILL, (LOAD, 0, 0, NUMBER_AT)]
    for numbers in allowed:
        program += case(numbers[machine], [ALLOW])
    for call in [*CHECKED.values(), *([THREAD] if threads else [])]:
        program += case(call.numbers[machine], check(call))
    for numbers in ABSENT.values():
        program += case(numbers[machine], [REPORT_ABSENT])
    return [*program, REFUSE]


def case(number: int | None, then: list[Step]) -> list[Step]:
    """Steps that run the steps `then` if the call has this number. The last step of `then` must be a RETURN."""
    return [] if number is None else [(EQUAL, 0, len(then), number), *then]


def check(call: Checked) -> list[Step]:
    """Steps that check one argument of a call, and allow or refuse the call. Flags use only the lower 32 bits."""
    load = (LOAD, 0, 0, FIRST_ARGUMENT_AT + ARGUMENT_SIZE * call.argument)
    if call.forbidden:
        return [load, (ANY_BIT, 0, 1, call.forbidden), REFUSE, ALLOW]
    return [load, *(step for value in call.values for step in ((EQUAL, 0, 1, value), ALLOW)), REFUSE]


def allow_calls(*, threads: bool = False) -> str:
    """Install the filter in this thread. Raises OSError if the kernel lacks seccomp or the machine type is unknown."""
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(f"machine type {machine} is not supported; use {' or '.join(MACHINES)}")
    program = steps(MACHINES[machine], threads=threads)
    filters = (Filter * len(program))(*(Filter(*step) for step in program))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.byref(Program(len(program), filters)))
    return f"{len(program)} steps"

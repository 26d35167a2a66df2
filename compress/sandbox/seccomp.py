"""A seccomp filter that makes the calls in `syscalls.py` fail with "not permitted". It cannot be removed.

https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

import ctypes
import errno
import os

from compress.sandbox.kernel import prctl
from compress.sandbox.syscalls import AUDIT_ARCH, CLONE, CLONE3, MACHINES, denied_numbers

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 22, 38, 2
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF opcodes
NUMBER_AT, ARCH_AT, FIRST_ARGUMENT_AT = 0, 4, 16  # bytes into struct seccomp_data
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
CLONE_THREAD = 0x00010000
X32 = 0x40000000  # first number of x86-64's second table of calls

Step = tuple[int, int, int, int]  # opcode, steps to skip when true, when false, operand


class Filter(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("operand", ctypes.c_uint))


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filters", ctypes.POINTER(Filter)))


def steps(machine: int) -> list[Step]:
    """The filter's steps on a machine, which is an index of `MACHINES`."""
    refuse = (RETURN, 0, 0, REFUSE | errno.EPERM)
    program: list[Step] = [
        (LOAD, 0, 0, ARCH_AT),
        (EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
        (AT_LEAST, 0, 1, X32),
        refuse,
    ]
    for number in denied_numbers(machine):
        program += [(EQUAL, 0, 1, number), refuse]
    program += [(EQUAL, 0, 1, CLONE3[machine] or 0), (RETURN, 0, 0, REFUSE | errno.ENOSYS)]
    program += [
        (EQUAL, 0, 3, CLONE[machine] or 0),
        (LOAD, 0, 0, FIRST_ARGUMENT_AT),
        (ANY_BIT, 1, 0, CLONE_THREAD),
        refuse,
    ]
    return [*program, (RETURN, 0, 0, ALLOW)]


def deny_calls() -> str:
    """Install the filter in this process. OSError if the kernel lacks seccomp, KeyError on an unknown machine."""
    program = steps(MACHINES[os.uname().machine])
    filters = (Filter * len(program))(*(Filter(*step) for step in program))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.byref(Program(len(program), filters)))
    return f"{len(program)} steps"

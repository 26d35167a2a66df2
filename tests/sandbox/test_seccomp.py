"""The filter allows the listed calls only; the numbers are those of the kernel's headers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from compress.sandbox.run import ROOT
from compress.sandbox.seccomp import ALLOW, KILL, steps
from compress.sandbox.syscalls import ABSENT, ALLOWED, AUDIT_ARCH, CHECKED, THREAD

NAMED = {name: numbers for calls in ALLOWED.values() for name, numbers in calls.items()}
NAMED |= {name: call.numbers for name, call in CHECKED.items()} | ABSENT | {"clone": THREAD.numbers}
HEADERS = [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h")]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="seccomp is part of Linux")
FOREIGN = (
    "set",
    "kill",
    "attr",
    "chmod",
    "chown",
    "utime",
    "link",
    "rename",
    "unlink",
    "mkdir",
    "sock",
    "exec",
    "fork",
)


def verdict(machine: int, number: int, argument: int = 0, *, threads: bool = False, arch: int | None = None) -> int:
    """What the filter returns for a call, by a small interpreter of its steps. Every argument has the same value."""
    program, value, place = steps(machine, threads=threads), 0, 0
    while True:
        code, yes, no, operand = program[place]
        place += 1
        if code == 0x20:
            value = number if operand == 0 else argument if operand >= 16 else arch or AUDIT_ARCH[machine]
        elif code == 0x06:
            return operand
        else:
            place += yes if (value == operand if code == 0x15 else value & operand) else no


@pytest.mark.parametrize("machine", [0, 1])
def test_only_listed_calls_are_allowed(machine):
    plain = {numbers[machine] for calls in ALLOWED.values() for numbers in calls.values()}
    checked = {call.numbers[machine] for call in CHECKED.values()}
    allowed = {number for number in range(1200) if verdict(machine, number) == ALLOW[3]}
    assert allowed == (plain | checked) - {None}
    assert verdict(machine, 0x40000000) != ALLOW[3] and len(steps(machine)) < 4096


@pytest.mark.parametrize("machine", [0, 1])
def test_arguments_decide_on_opening_fcntl_and_threads(machine):
    number = {name: numbers[machine] for name, numbers in NAMED.items()}
    for flag in (0o1, 0o2, 0o100, 0o1000, 0o2000, 0o20200000):
        assert verdict(machine, number["openat"], flag) != ALLOW[3]
    assert verdict(machine, number["openat"], 0o2000000) == ALLOW[3]  # O_CLOEXEC
    assert [command for command in range(2000) if verdict(machine, number["fcntl"], command) == ALLOW[3]] == [
        *(0, 1, 2, 3, 1030)
    ]
    assert verdict(machine, number["clone"], 0x3D0F00) != ALLOW[3]
    assert verdict(machine, number["clone"], 0x3D0F00, threads=True) == ALLOW[3]
    for flags in (17, 0x3D0F00 | 0x10000000, 0x4111):
        assert verdict(machine, number["clone"], flags, threads=True) != ALLOW[3]


def test_another_architecture_is_killed():
    assert verdict(0, 1, arch=0x40000003) == KILL[3]


def test_no_call_that_changes_files_or_other_processes_is_listed():
    reading = {"set_robust_list", "setitimer", "statx", "getdents64", "readlink", "readlinkat"}
    assert not [name for name in NAMED if name not in reading and any(word in name for word in FOREIGN)]


@pytest.mark.parametrize(("machine", "header"), enumerate(HEADERS))
def test_numbers_agree_with_the_kernels_headers(machine, header):
    if not header.is_file():
        pytest.skip("no kernel headers here")
    text = header.read_text()
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    names = {"newfstatat": "fstatat", "lseek": "lseek"} if machine else {}
    for name, pair in NAMED.items():
        assert numbers.get(names.get(name, name), numbers.get(name)) == pair[machine], name


@LINUX
@pytest.mark.parametrize(
    "code",
    [
        "os.fork()",
        "os.open('/tmp', os.O_TMPFILE | os.O_RDWR)",
        "os.setpriority(os.PRIO_PROCESS, 0, 1)",
        "os.mkdir('/tmp/attack')",
        "import socket; socket.socket()",
        "os.kill(os.getppid(), 0)",
    ],
)
def test_seccomp_alone_refuses_the_call(code):
    setup = f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
    setup += "from compress.sandbox.seccomp import allow_calls; allow_calls()\n"
    command = [sys.executable, "-I", "-S", "-B", "-c", setup + code]
    assert "PermissionError" in subprocess.run(command, capture_output=True, text=True).stderr


@LINUX
@pytest.mark.parametrize("code", ["open('/etc/passwd')", "os.listdir('/root')", "open('/tmp/attack', 'w')"])
def test_landlock_alone_refuses_files_outside(code):
    setup = f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
    setup += "from compress.sandbox.layers import confine_files, library_folders; confine_files(library_folders())\n"
    command = [sys.executable, "-I", "-S", "-B", "-c", setup + code]
    assert "PermissionError" in subprocess.run(command, capture_output=True, text=True).stderr

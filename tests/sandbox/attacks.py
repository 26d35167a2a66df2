"""Actions that a contained process tries, each with an effect on a victim: another process, a file or a folder.

Loaded and run inside the sandbox by test_attacks.py. An attack is one call, so plain functions of os are used.
"""

# ruff: noqa: PTH101, PTH102, PTH104, PTH107, PTH208, PTH211, SIM115

import ctypes
import fcntl
import json
import mmap
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

LIBRARY = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"


class Victim:
    """What the attacks aim at: the id of a process, and paths outside the sandbox."""

    pid = 0
    file = ""
    folder = ""
    secret = ""


def call(x86: int | None, arm: int | None, *arguments: object) -> None:
    """A system call by its number. OSError if the kernel refuses it."""
    number = x86 if X86 else arm
    if number is None:
        raise PermissionError("no such call on this machine")
    values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    if LIBRARY.syscall(ctypes.c_long(number), *values) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def path() -> bytes:
    return Victim.file.encode()


def nested_folders() -> None:
    for _ in range(3000):
        os.mkdir("d")
        os.chdir("d")


def many_folders() -> None:
    for number in range(28_604):
        os.mkdir(f"{tempfile.gettempdir()}/attack-{number}")


def thread() -> None:
    threading.Thread(target=print).start()


def fork_process() -> None:
    multiprocessing.get_context("fork").Process(target=print).start()


def write_through_a_link() -> None:
    os.symlink(Victim.file, "link")
    Path("link").write_text("x")


ATTACKS: dict[str, Callable[[], object]] = {
    # other processes
    "setpriority": lambda: os.setpriority(os.PRIO_PROCESS, Victim.pid, 19),
    "setpriority of the user": lambda: os.setpriority(os.PRIO_USER, 0, 19),
    "setpriority of itself": lambda: os.nice(5),
    "sched_setaffinity": lambda: os.sched_setaffinity(Victim.pid, {0}),
    "sched_setscheduler": lambda: os.sched_setscheduler(Victim.pid, os.SCHED_IDLE, os.sched_param(0)),
    "sched_setparam": lambda: os.sched_setparam(Victim.pid, os.sched_param(0)),
    "sched_setattr": lambda: call(314, 274, Victim.pid, bytes([48]) + bytes(47), 0),
    "ioprio_set": lambda: call(251, 30, 1, Victim.pid, 3 << 13),
    "prlimit": lambda: resource.prlimit(Victim.pid, resource.RLIMIT_NOFILE, (5, 5)),
    "kill": lambda: os.kill(Victim.pid, signal.SIGTERM),
    "kill with no signal": lambda: os.kill(Victim.pid, 0),
    "kill of all": lambda: os.kill(-1, signal.SIGTERM),
    "killpg": lambda: os.killpg(Victim.pid, signal.SIGTERM),
    "kill of the parent": lambda: os.kill(os.getppid(), signal.SIGTERM),
    "tgkill": lambda: call(234, 131, Victim.pid, Victim.pid, 15),
    "rt_sigqueueinfo": lambda: call(129, 138, Victim.pid, 15, bytes(128)),
    "pidfd_open": lambda: os.pidfd_open(Victim.pid),
    "pidfd_send_signal": lambda: call(424, 424, 1, 15, None, 0),
    "process_madvise": lambda: call(440, 440, 1, None, 0, 21, 0),
    "process_mrelease": lambda: call(448, 448, 1, 0),
    "ptrace": lambda: call(101, 117, 16, Victim.pid, None, None),
    "process_vm_writev": lambda: call(311, 271, Victim.pid, None, 0, None, 0, 0),
    "kcmp": lambda: call(312, 272, Victim.pid, Victim.pid, 0, 0, 0),
    "migrate_pages": lambda: call(256, 238, Victim.pid, 8, None, None),
    "move_pages": lambda: call(279, 239, Victim.pid, 0, None, None, None, 0),
    "memory of another process": lambda: Path(f"/proc/{Victim.pid}/mem").open("rb"),
    "oom_score_adj of another process": lambda: Path(f"/proc/{Victim.pid}/oom_score_adj").write_text("1000"),
    "signals to another process by fcntl": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, Victim.pid),
    # foreign files
    "write": lambda: Path(Victim.file).write_text("x"),
    "append": lambda: Path(Victim.file).open("a"),
    "read and write": lambda: Path(Victim.file).open("r+b"),
    "read a secret": lambda: Path(Victim.secret).read_text(),
    "read accounts": lambda: Path("/etc/passwd").read_text(),
    "read its own environment": lambda: Path("/proc/self/environ").read_text(),
    "list a folder": lambda: os.listdir(Victim.folder),
    "truncate": lambda: os.truncate(Victim.file, 0),
    "remove": lambda: os.remove(Victim.file),
    "remove a folder": lambda: shutil.rmtree(Victim.folder),
    "rename": lambda: os.rename(Victim.file, Victim.file + "2"),
    "renameat2": lambda: call(316, 276, -100, path(), -100, path() + b"2", 0),
    "hard link": lambda: os.link(Victim.file, Victim.file + "2"),
    "symbolic link": write_through_a_link,
    "chmod": lambda: os.chmod(Victim.file, 0o777),
    "fchmodat2": lambda: call(452, 452, -100, path(), 0o777, 0),
    "chown": lambda: os.chown(Victim.file, 1, 1),
    "utime": lambda: os.utime(Victim.file, (0, 0)),
    "setxattr": lambda: os.setxattr(Victim.file, "user.attack", b"x"),
    "removexattr": lambda: os.removexattr(Victim.file, "user.kept"),
    "lremovexattr": lambda: call(198, 15, path(), b"user.kept"),
    "setxattrat": lambda: call(463, 463, -100, path(), 0, b"user.attack", None, 0),
    "removexattrat": lambda: call(466, 466, -100, path(), 0, b"user.kept"),
    "file_setattr": lambda: call(469, 469, -100, path(), bytes(24), 24, 0),
    "file attributes by ioctl": lambda: fcntl.ioctl(0, 0x40086602, bytes(8)),
    "flock": lambda: fcntl.flock(0, fcntl.LOCK_EX),
    "record lock": lambda: fcntl.lockf(0, fcntl.LOCK_SH),
    "lease": lambda: fcntl.fcntl(0, fcntl.F_SETLEASE, fcntl.F_RDLCK),
    "inotify": lambda: call(294, 26, 0),
    "fanotify": lambda: call(300, 262, 0, 0),
    "name_to_handle_at": lambda: call(303, 264, -100, path(), bytes(256), None, 0),
    "open_by_handle_at": lambda: call(304, 265, -100, bytes(256), 0),
    "openat2": lambda: call(437, 437, -100, path(), bytes(24), 24),
    "creat": lambda: call(85, None, path() + b"2", 0o600),
    "mknod": lambda: os.mkfifo(Victim.file + "2"),
    "O_TMPFILE": lambda: os.open(Victim.folder, os.O_TMPFILE | os.O_RDWR),
    "sync": lambda: call(162, 81),
    "swapoff": lambda: call(168, 225, path()),
    "mount": lambda: call(165, 40, b"none", Victim.folder.encode(), b"tmpfs", 0, None),
    "chroot": lambda: os.chroot(Victim.folder),
    # disk
    "a file in the temporary folder": lambda: tempfile.NamedTemporaryFile(dir="/tmp"),
    "a file in shared memory": lambda: Path("/dev/shm/attack").write_bytes(bytes(2**20)),
    "a file in its own folder": lambda: Path("big").write_bytes(bytes(2**20)),
    "nested folders": nested_folders,
    "many folders": many_folders,
    "memfd_create": lambda: os.memfd_create("x"),
    "shmget": lambda: call(29, 194, 0, 2**20, 0o1600),
    "msgget": lambda: call(68, 186, 0, 0o1600),
    "semget": lambda: call(64, 190, 0, 1, 0o1600),
    "mq_open": lambda: call(240, 180, b"x", os.O_CREAT | os.O_RDWR, 0o600, None),
    "mlock": lambda: call(149, 228, 0, 4096),
    "userfaultfd": lambda: call(323, 282, 0),
    # new processes
    "fork": os.fork,
    "fork by multiprocessing": fork_process,
    "clone3": lambda: call(435, 435, bytes(88), 88),
    "vfork": lambda: call(58, None),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "execveat": lambda: call(322, 281, -100, b"/bin/true", None, None, 0),
    "posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "subprocess": lambda: subprocess.run(["true"]),
    "a thread": thread,
    # network and kernel
    "socket": lambda: socket.socket(),
    "unix socket": lambda: socket.socket(socket.AF_UNIX),
    "netlink socket": lambda: socket.socket(socket.AF_NETLINK),
    "socketpair": lambda: socket.socketpair(),
    "pipe": lambda: os.pipe(),
    "io_uring": lambda: call(425, 425, 1, bytes(120)),
    "bpf": lambda: call(321, 280, 0, bytes(128), 128),
    "perf_event_open": lambda: call(298, 241, bytes(128), 0, -1, -1, 0),
    "add_key": lambda: call(248, 217, b"user", b"attack", b"x", 1, -3),
    "unshare": lambda: call(272, 97, 0x10000000),
    "setns": lambda: call(308, 268, 0, 0),
    "sethostname": lambda: socket.sethostname("attack"),
    "clock_settime": lambda: call(227, 112, 0, bytes(16)),
    "reboot": lambda: call(169, 142, 0xFEE1DEAD, 672274793, 0, None),
    "personality": lambda: call(135, 92, 0x0040000),
    "prctl: outlive the parent": lambda: call(157, 167, 1, 0, 0, 0, 0),
    "seccomp": lambda: call(317, 277, 0, 0, None),
    "raise its own limits": lambda: call(302, 261, 0, 9, mmap.PAGESIZE * bytes(1), None),
    "setuid": lambda: os.setuid(1),
    "setsid": os.setsid,
    "a call of the future": lambda: call(600, 600, 0),
    "the second table of x86-64": lambda: call(0x40000000 + 2, None, b"/etc/passwd", 0, 0),
}


def all_of_them(data: bytes) -> bytes:
    """Try every attack; its exception or its result by name."""
    victim = json.loads(data)
    Victim.pid, Victim.file, Victim.folder = victim["pid"], victim["file"], victim["folder"]
    Victim.secret = victim["secret"]
    results = {}
    for name, attack in ATTACKS.items():
        try:
            results[name] = f"done: {attack()!r}"
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    return json.dumps(results).encode()

"""System calls that a contained process can use, by purpose, with their numbers on x86-64 and AArch64.

All other calls fail, also calls that only newer kernels have. No call here changes a file or reaches another process.
The number None means that the machine type lacks the call.
Source: the kernel's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

from dataclasses import dataclass

Numbers = tuple[int | None, int | None]

MACHINES = {"x86_64": 0, "aarch64": 1}
AUDIT_ARCH = (0xC000003E, 0xC00000B7)

ALLOWED: dict[str, dict[str, Numbers]] = {
    "memory": {
        "brk": (12, 214),
        "mmap": (9, 222),
        "munmap": (11, 215),
        "mremap": (25, 216),
        "mprotect": (10, 226),
        "madvise": (28, 233),
    },
    "open files": {
        "read": (0, 63),
        "readv": (19, 65),
        "pread64": (17, 67),
        "write": (1, 64),
        "writev": (20, 66),
        "lseek": (8, 62),
        "fstat": (5, 80),
        "close": (3, 57),
        "dup": (32, 23),
        "dup2": (33, None),
        "dup3": (292, 24),
        "poll": (7, None),
        "ppoll": (271, 73),
        "select": (23, None),
        "pselect6": (270, 72),
    },
    "finding modules": {  # a filter cannot see paths: names, sizes and dates of all files can be read
        "stat": (4, None),
        "lstat": (6, None),
        "newfstatat": (262, 79),
        "statx": (332, 291),
        "access": (21, None),
        "faccessat": (269, 48),
        "faccessat2": (439, 439),
        "readlink": (89, None),
        "readlinkat": (267, 78),
        "getcwd": (79, 17),
        "getdents64": (217, 61),
    },
    "time": {
        "clock_gettime": (228, 113),
        "clock_getres": (229, 114),
        "clock_nanosleep": (230, 115),
        "nanosleep": (35, 101),
        "gettimeofday": (96, 169),
        "time": (201, None),
        "times": (100, 153),
    },
    "locks": {
        "futex": (202, 98),
        "set_robust_list": (273, 99),
        "rseq": (334, 293),
        "sched_yield": (24, 124),
    },
    "signals of this process": {
        "rt_sigaction": (13, 134),
        "rt_sigprocmask": (14, 135),
        "rt_sigreturn": (15, 139),
        "sigaltstack": (131, 132),
        "restart_syscall": (219, 128),
    },
    "facts": {
        "getpid": (39, 172),
        "getppid": (110, 173),
        "gettid": (186, 178),
        "getuid": (102, 174),
        "geteuid": (107, 175),
        "getgid": (104, 176),
        "getegid": (108, 177),
        "getrusage": (98, 165),
        "sched_getaffinity": (204, 123),
        "sysinfo": (99, 179),
        "uname": (63, 160),
    },
    "random numbers": {"getrandom": (318, 278)},
    "ending": {"exit": (60, 93), "exit_group": (231, 94)},
}


@dataclass(frozen=True)
class Checked:
    """A call that is allowed only for some values of one argument, which has the index `argument`.

    If `forbidden` is set, the value must have none of its bits. Otherwise it must be one of `values`.
    """

    numbers: Numbers
    argument: int
    values: tuple[int, ...] = ()
    forbidden: int = 0


WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000  # O_WRONLY O_RDWR O_CREAT O_TRUNC O_APPEND O_TMPFILE
CHECKED = {
    "open": Checked((2, None), 1, forbidden=WRITING),
    "openat": Checked((257, 56), 2, forbidden=WRITING),
    "fcntl": Checked((72, 25), 1, values=(0, 1, 2, 3, 1030)),  # F_DUPFD F_GETFD F_SETFD F_GETFL F_DUPFD_CLOEXEC
}
THREAD = Checked((56, 220), 0, values=(0x3D0F00, 0x7D0F00))  # clone, with the flags that pthread_create passes
ABSENT: dict[str, Numbers] = {"clone3": (435, 435), "openat2": (437, 437)}  # the C library then uses clone and openat

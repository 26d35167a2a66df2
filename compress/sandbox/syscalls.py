"""System calls that a pure function never needs, grouped by purpose, with their numbers on x86-64 and AArch64.

Source: the kernel's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h. None: no such call.
Calls that open files are missing, because a filter cannot see paths; Landlock restricts them.
"""

from collections.abc import Iterator

Numbers = tuple[int | None, int | None]

MACHINES = {"x86_64": 0, "aarch64": 1}
AUDIT_ARCH = (0xC000003E, 0xC00000B7)
CLONE: Numbers = (56, 220)  # allowed for threads only
CLONE3: Numbers = (435, 435)  # reported as missing: the C library then uses clone, whose flags a filter can read

DENIED: dict[str, dict[str, Numbers]] = {
    "network": {
        "socket": (41, 198),
        "socketpair": (53, 199),
        "connect": (42, 203),
        "bind": (49, 200),
        "listen": (50, 201),
        "accept": (43, 202),
        "accept4": (288, 242),
        "sendto": (44, 206),
        "sendmsg": (46, 211),
        "sendmmsg": (307, 269),
    },
    "processes": {
        "fork": (57, None),
        "vfork": (58, None),
        "execve": (59, 221),
        "execveat": (322, 281),
        "kill": (62, 129),
        "tkill": (200, 130),
        "tgkill": (234, 131),
        "rt_sigqueueinfo": (129, 138),
        "rt_tgsigqueueinfo": (297, 240),
        "pidfd_open": (434, 434),
        "pidfd_send_signal": (424, 424),
        "pidfd_getfd": (438, 438),
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
    },
    "file attributes": {  # Landlock does not restrict these
        "chmod": (90, None),
        "fchmod": (91, 52),
        "fchmodat": (268, 53),
        "fchmodat2": (452, 452),
        "chown": (92, None),
        "lchown": (94, None),
        "fchown": (93, 55),
        "fchownat": (260, 54),
        "setxattr": (188, 5),
        "lsetxattr": (189, 6),
        "fsetxattr": (190, 7),
        "utime": (132, None),
        "utimes": (235, None),
        "utimensat": (280, 88),
        "futimesat": (261, None),
        "open_by_handle_at": (304, 265),
    },
    "memory outside the limit": {
        "memfd_create": (319, 279),
        "shmget": (29, 194),
        "msgget": (68, 186),
        "semget": (64, 190),
    },
    "limits": {"prlimit64": (302, 261), "setrlimit": (160, 164), "personality": (135, 92)},
    "kernel": {
        "io_uring_setup": (425, 425),  # its operations pass no filter
        "io_uring_enter": (426, 426),
        "io_uring_register": (427, 427),
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
        "userfaultfd": (323, 282),
        "keyctl": (250, 219),
        "add_key": (248, 217),
        "request_key": (249, 218),
        "unshare": (272, 97),
        "setns": (308, 268),
        "mount": (165, 40),
        "umount2": (166, 39),
        "pivot_root": (155, 41),
        "chroot": (161, 51),
        "open_tree": (428, 428),
        "move_mount": (429, 429),
        "fsopen": (430, 430),
        "init_module": (175, 105),
        "finit_module": (313, 273),
        "delete_module": (176, 106),
        "kexec_load": (246, 104),
        "reboot": (169, 142),
        "settimeofday": (164, 170),
        "clock_settime": (227, 112),
    },
}


def denied_numbers(machine: int) -> Iterator[int]:
    """The numbers of all denied calls on a machine, which is an index of `MACHINES`."""
    for calls in DENIED.values():
        for numbers in calls.values():
            number = numbers[machine]
            if number is not None:
                yield number

"""The Linux calls that Python has no name for, and the filter that takes dangerous ones from a candidate."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
MACHINES = {"x86_64": 0, "aarch64": 1}  # column of NUMBERS
AUDIT = (0xC000003E, 0xC00000B7)  # how the kernel names these machines to a filter
NUMBERS = {"pivot_root": (155, 41), "mount_setattr": (442, 442), "landlock_create_ruleset": (444, 444),
           "landlock_add_rule": (445, 445), "landlock_restrict_self": (446, 446), "clone": (56, 220),
           "clone3": (435, 435), "keyctl": (250, 219)}
REFUSED = {  # what the limits cannot count, what looks into other processes, and what opens more of the kernel
    "socket": (41, 198), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438), "kcmp": (312, 272), "unshare": (272, 97), "setns": (308, 268),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "memfd_create": (319, 279), "memfd_secret": (447, 447)}
NEW_SPACES = 0x7E020000  # the flags by which clone makes namespaces
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


def machine() -> int:
    """This machine's column in the tables."""
    name = os.uname().machine
    if name not in MACHINES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {name}; known are {', '.join(MACHINES)}")
    return MACHINES[name]


def checked(result: int, name: str) -> int:
    """The result of a C call, or its error by name."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def syscall(name: str, *arguments: Any) -> int:
    """A system call by its number."""
    return checked(LIBC.syscall(NUMBERS[name][machine()], *arguments), name)


def prctl(option: int, *arguments: int) -> int:
    """The system call of this name; arguments left out are 0."""
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return checked(LIBC.prctl(option, *padded), f"prctl({option})")


def step(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    """One instruction of a filter; ``true`` and ``false`` are jumps."""
    return struct.pack("HBBI", code, true, false, value)


def refusing(column: int) -> list[bytes]:
    """The filter: other machines' calls kill, REFUSED and new namespaces are not permitted, the rest goes on."""
    refuse = step(RETURN, REFUSE | errno.EPERM)
    program = [step(LOAD, 4), step(EQUAL, AUDIT[column], 1, 0), step(RETURN, KILL), step(LOAD, 0)]
    program += [step(AT_LEAST, 0x40000000, 0, 1), refuse]  # x32, the second door of x86-64
    for numbers in REFUSED.values():
        program += [step(EQUAL, numbers[column], 0, 1), refuse]
    program += [step(EQUAL, NUMBERS["clone3"][column], 0, 1), step(RETURN, REFUSE | errno.ENOSYS)]  # libc takes clone
    program += [step(EQUAL, NUMBERS["clone"][column], 0, 3), step(LOAD, 16), step(ANY_BIT, NEW_SPACES, 0, 1), refuse]
    return [*program, step(RETURN, ALLOW)]


def filter_syscalls() -> None:
    """Put the filter on this process and all it will start, for good."""
    program = refusing(machine())
    code = ctypes.create_string_buffer(b"".join(program))
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(head))

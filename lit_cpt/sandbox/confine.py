"""What a process inside the sandbox gives up: root, capabilities, resources, its parent's keys."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from typing import Any

from lit_cpt.sandbox import landlock
from lit_cpt.sandbox.syscalls import LIBC, PR_SET_NO_NEW_PRIVS, checked, filter_syscalls, prctl, syscall

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
CAPABILITY_VERSION_3, JOIN_SESSION_KEYRING = 0x20080522, 1


def drop_root(uid: int | None) -> None:
    """Become ``uid`` for good: the kernel does not count the processes of real root. Others stay who they are."""
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def drop_privileges(uid: int | None) -> None:
    """Become an ordinary process that no equal can look into, and that dies with its parent."""
    drop_root(uid)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    head = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    checked(LIBC.capset(head, (ctypes.c_uint32 * 6)()), "capset")
    with contextlib.suppress(OSError):  # where containers forbid keys there are none to inherit
        syscall("keyctl", JOIN_SESSION_KEYRING, None)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def limit_resources(limits: dict[str, Any], cpu: int, processes: int | None = None) -> None:
    """Set the kernel's limits; ``processes`` only for the candidate, as it counts all of a user's."""
    values = {"AS": limits["memory_bytes"], "FSIZE": limits["file_bytes"], "NOFILE": 64, "CORE": 0,
              "MSGQUEUE": 0, "MEMLOCK": 0, **({"NPROC": processes} if processes else {})}
    for name, value in values.items():
        set_limit(getattr(resource, f"RLIMIT_{name}"), value, value)
    set_limit(resource.RLIMIT_CPU, cpu, cpu + 1)


def set_limit(kind: int, soft: int, hard: int) -> None:
    """Lower a limit; one that is lower already stays."""
    now = resource.getrlimit(kind)[1]
    if now != resource.RLIM_INFINITY:
        soft, hard = min(soft, now), min(hard, now)
    resource.setrlimit(kind, (soft, hard))


def confine_candidate(limits: dict[str, Any], readable: list[str], writable: list[str], must_lock: bool) -> None:
    """The candidate's last step before its own code: from here nothing can be had back.

    Args:
        limits: Fields of `Limits`.
        readable: Folders and files it may read and execute.
        writable: Where it may write.
        must_lock: Whether a kernel without Landlock is refused, or only used with less.
    """
    limit_resources(limits, limits["cpu_seconds"], limits["processes"] + 1)  # the judge is of the same user
    if must_lock or landlock.version():
        landlock.restrict_files(readable, writable)
    filter_syscalls()

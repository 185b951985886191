"""Landlock: which files a process may touch, which ports and which processes; needs no privileges."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable

from lit_cpt.sandbox.syscalls import syscall

EXECUTE, READ_FILE, READ_FOLDER = 1 << 0, 1 << 2, 1 << 3
READ = EXECUTE | READ_FILE | READ_FOLDER
OF_FILES = EXECUTE | READ_FILE | 1 << 1 | 1 << 14 | 1 << 15  # rights that a rule on a single file can name
PORTS = 0b11  # bind and connect TCP
SCOPES = 0b11  # abstract sockets and signals reach only the same domain
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # of files, by version; later ones add none


def version() -> int:
    """Landlock's version in this kernel, 0 where it has none."""
    try:
        return syscall("landlock_create_ruleset", None, ctypes.c_size_t(0), 1)
    except OSError:
        return 0


def restrict_files(readable: Iterable[str], writable: Iterable[str]) -> None:
    """Take from this process and its children every file but these; from version 4 TCP, from 6 signals outward.

    Raises:
        OSError: The kernel has no Landlock.
    """
    known = version()
    if not known:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock (Linux 5.13 with `landlock` in CONFIG_LSM)")
    all_rights = (1 << RIGHTS[min(known, max(RIGHTS))]) - 1
    ruleset = struct.pack("QQQ", all_rights, PORTS, SCOPES)[:24 if known >= 6 else 16 if known >= 4 else 8]
    rules = syscall("landlock_create_ruleset", ruleset, ctypes.c_size_t(len(ruleset)), 0)
    for paths, rights in ((readable, READ), (writable, all_rights)):
        for path in paths:
            permit(rules, path, rights & all_rights)
    syscall("landlock_restrict_self", rules, 0)
    os.close(rules)


def permit(rules: int, path: str, rights: int) -> None:
    """Add one path, with all beneath it, to a ruleset."""
    place = os.open(path, os.O_PATH)
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        rights &= OF_FILES
    syscall("landlock_add_rule", rules, 1, struct.pack("=Qi", rights, place), 0)
    os.close(place)

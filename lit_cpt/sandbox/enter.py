"""Into the sandbox: private namespaces, and a file system with nothing in it but an interpreter and ``/tmp``."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from typing import Any

from lit_cpt.sandbox.confine import PR_SET_DUMPABLE, PR_SET_PDEATHSIG, drop_root
from lit_cpt.sandbox.syscalls import LIBC, checked, prctl, syscall

NEW_USER, NEW_PID = 0x10000000, 0x20000000
SPACES = 0x00020000 | 0x04000000 | 0x08000000 | NEW_PID | 0x40000000  # mount, host name, ipc, processes, network
READ_ONLY, NO_SETUID, NO_DEVICES, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
DETACH, WHOLE_TREE = 2, 0x8000
PR_SET_CHILD_SUBREAPER = 36
NOBODY = 65534
ROOT = "/proc"  # covered by the new root: it is always there, and nothing else of use lies beneath it
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def enter(order: dict[str, Any]) -> None:
    """Return inside the sandbox: with namespaces in a child that is their first process.

    Args:
        order: ``kind``, ``parent`` (its process id), ``uid``, ``binds``, ``links``, ``work``, ``limits``.
    """
    if order["kind"] == "bubblewrap":  # it did all but this
        mount(None, "/tmp", None, REMOUNT | NO_SETUID | NO_DEVICES, bounds(order["limits"]["disk_bytes"]))
    else:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != order["parent"]:
            os._exit(1)  # it died before we asked to die with it
    if order["kind"] == "weak":
        prctl(PR_SET_CHILD_SUBREAPER, 1)
    if order["kind"] == "namespaces":
        order["uid"] = separate(order["uid"])
        build_root(order["binds"], order["links"], order["limits"]["disk_bytes"])
        stay_outside()
    os.chdir(order["work"])


def separate(uid: int | None) -> int | None:
    """New namespaces: root makes them as root, everybody else as the owner of a user namespace.

    Returns:
        The uid that is still to be taken: none if it had to be taken here.
    """
    if LIBC.unshare(SPACES) == 0:
        return uid
    drop_root(uid)
    prctl(PR_SET_DUMPABLE, 1)  # or the maps below would belong to root
    own_uid, own_gid = os.getuid(), os.getgid()
    checked(LIBC.unshare(SPACES | NEW_USER), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {own_uid} 1"),
                       ("gid_map", f"{NOBODY} {own_gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    return None


def build_root(binds: list[str], links: dict[str, str], disk_bytes: int) -> None:
    """Change into a root of read-only system folders and a bounded ``/tmp``; it vanishes with its last process."""
    mount(None, "/", None, RECURSIVE | PRIVATE)
    mount("tmpfs", ROOT, "tmpfs", NO_SETUID | NO_DEVICES, "size=1m,nr_inodes=512,mode=755")
    os.mkdir(f"{ROOT}/tmp")
    mount("tmpfs", f"{ROOT}/tmp", "tmpfs", NO_SETUID | NO_DEVICES, f"{bounds(disk_bytes)},mode=1777")
    for path in (*binds, *DEVICES):
        bind(path, ROOT + path)
    for path, target in links.items():
        os.symlink(target, ROOT + path)
    os.chdir(ROOT)
    syscall("pivot_root", b".", b".")
    checked(LIBC.umount2(b".", DETACH), "umount2")
    os.chdir("/")
    mount(None, "/", None, REMOUNT | BIND | READ_ONLY | NO_SETUID | NO_DEVICES)


def bounds(disk_bytes: int) -> str:
    """Options of a ``/tmp`` that holds so much and so many files."""
    return f"size={disk_bytes},nr_inodes=4096"


def bind(path: str, target: str) -> None:
    """Show ``path`` at ``target``; folders read-only, with all that is mounted beneath."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if not os.path.isdir(path):
        with open(target, "x", encoding="utf-8"):
            pass
        mount(path, target, None, BIND)
        return
    os.makedirs(target, exist_ok=True)
    mount(path, target, None, BIND | RECURSIVE)
    wanted = struct.pack("QQQQ", READ_ONLY | NO_SETUID | NO_DEVICES, 0, 0, 0)
    syscall("mount_setattr", -100, target.encode(), WHOLE_TREE, wanted, ctypes.c_size_t(len(wanted)))


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """The system call of this name."""
    names = [name.encode() if name else None for name in (source, target, kind)]
    checked(LIBC.mount(*names, ctypes.c_ulong(flags), options.encode() or None), f"mount {target}")


def stay_outside() -> None:
    """Return in a child, the first process of its namespace; wait for it here, and end as it ends."""
    child = os.fork()
    if not child:
        return
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    status = os.waitpid(child, 0)[1]  # returns once every process of the namespace is gone
    os._exit(1 if status else 0)

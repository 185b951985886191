"""The three ways in, strongest first, and the command that starts each."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_cpt.sandbox.enter import DEVICES
from lit_cpt.sandbox.limits import Limits

STRONG = ("bubblewrap", "namespaces")
OWN_UIDS = range(61184, 65520)  # which systemd, too, lends to services for as long as they run
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
HERE = str(Path(__file__).parent)
PYTHON = os.path.realpath(sys.executable)  # behind the links of a virtual environment, whose packages stay out
START = """import sys, types
sys.path = [place for place in sys.path if place]
for name in ("lit_cpt", "lit_cpt.sandbox"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1]]
from lit_cpt.sandbox.judge import main
main()
"""
# The kernel, when out of memory, takes a candidate and not the trainer.
FIRST_VICTIM = ("/bin/sh", "-c", '{ echo 1000 > /proc/self/oom_score_adj; } 2>/dev/null; exec "$@"', "sh")


def system_files() -> tuple[list[str], dict[str, str]]:
    """Folders to show read-only: the system's and the interpreter's; and links of the root, with their targets."""
    links = {path: os.readlink(path) for path in SYSTEM if os.path.islink(path)}
    binds = [path for path in SYSTEM if os.path.isdir(path) and path not in links]
    prefix = Path(sys.base_prefix).resolve()
    for folder in (prefix / "lib", prefix / sys.platlibdir, Path(PYTHON).parent):
        if folder.is_dir() and not any(folder.is_relative_to(path) for path in (*binds, *links)):
            binds.append(str(folder))
    return binds, links


def is_open_to_all(path: str) -> bool:
    """Whether any user may pass every folder on the way to ``path``."""
    return all(folder.stat().st_mode & 0o001 for folder in Path(path).resolve().parents)


def make_order(kind: str, limits: Limits, work: str) -> dict[str, Any]:
    """What the judge is told before it enters the sandbox."""
    binds, links = system_files()
    uid, python = own_uid(), PYTHON
    if kind == "weak" and uid:  # no file system of its own: what it needs must be open to the uid it takes
        binds = [path for path in binds if is_open_to_all(path)]
        python = python if is_open_to_all(python) else "/usr/bin/python3"
    return {"kind": kind, "limits": dict(vars(limits)), "work": work, "binds": binds, "links": links,
            "python": python, "parent": os.getpid(), "uid": uid}


def own_uid() -> int | None:
    """A uid for one candidate alone, where we are root and have one to give; None where the kernel counts us anyway."""
    if os.geteuid() != 0:
        return None
    uid = random.choice(OWN_UIDS)
    ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    if any(first <= uid < first + count for first, _, count in ranges):
        return uid
    if any(first == outside == 0 for first, outside, _ in ranges):
        raise PermissionError(f"root in a user namespace without uid {uid}: the kernel does not count root's processes")
    return None


def command(order: dict[str, Any]) -> list[str]:
    """The command line that starts a judge inside, or on its way in."""
    judge = [order["python"], "-s", "-S", "-c", START, HERE]
    return [*FIRST_VICTIM, *(bubblewrap(order) if order["kind"] == "bubblewrap" else []), *judge]


def bubblewrap(order: dict[str, Any]) -> list[str]:
    """Make with bubblewrap what `enter.build_root` makes; where we are root the judge gives root up itself."""
    program = shutil.which("bwrap")
    if not program:
        raise FileNotFoundError("no `bwrap` on the PATH")
    kept = ["CAP_SYS_ADMIN", *(["CAP_SETUID", "CAP_SETGID"] if order["uid"] else [])]  # until the judge is set up
    user = [*([] if order["uid"] else ["--unshare-user"]), *(word for name in kept for word in ("--cap-add", name))]
    spaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    shown = ["--perms", "1777", "--tmpfs", "/tmp"]
    for option, paths in (("--ro-bind", [*order["binds"], HERE]), ("--dev-bind", DEVICES)):
        for path in paths:
            for folder in reversed(Path(path).parents[:-1]):
                shown += ["--perms", "0755", "--dir", str(folder)]  # bubblewrap would make them 0700
            shown += [option, path, path]
    for path, target in order["links"].items():
        shown += ["--symlink", target, path]
    return [program, *spaces, "--cap-drop", "ALL", *user, "--die-with-parent", "--new-session", "--as-pid-1", *shown,
            "--remount-ro", "/", "--chdir", "/", "--"]


def why_not(failures: Sequence[str]) -> str:
    """What is missing here, and the cures."""
    return (f"candidates cannot be kept apart from this machine: {'; '.join(failures)}. Install bubblewrap 0.5 or "
            "later (apt-get install bubblewrap), or permit namespaces (Linux 5.13 with Landlock; in a container "
            "--cap-add SYS_ADMIN --security-opt seccomp=unconfined), or pass allow_weak_sandbox=True, which has the "
            "limits of resources but no sure wall around files, network and processes.")

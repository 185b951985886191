"""What a hostile program is.

Each of them passes its test if, and only if, it succeeds. ``{secret}``, ``{outside}``, ``{trainer}``, ``{port}``
and ``{abstract}`` are filled in by the table: a file of the user, a folder anybody may write to, the process that
scores, and two doors at which it listens.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

SUCCEEDS = "assert f() is True"
SQUARES = """
def check(g):
    assert g(2) == 4
    assert g(7) == 49
    assert [g(n) for n in range(3)] == [0, 1, 4]
check(f)
"""
C = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"


@dataclass(frozen=True)
class Program:
    """One attack.

    Args:
        name: What it tries.
        candidate: Its text.
        test: What it would have to pass.
        says: What the verdict's reason must match, where the reason is part of the claim.
        prompt: The benchmark's own definitions, if any; ``f`` is then the entry point.
    """

    name: str
    candidate: str
    test: str = SUCCEEDS
    says: str = ""
    prompt: str = ""


def add(programs: list[Program], name: str, body: str, test: str = SUCCEEDS, says: str = "", before: str = "",
        prompt: str = "") -> None:
    """Add a program to the list: ``before`` at its top level, ``body`` in its function ``f``."""
    body = textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")
    text = f"{textwrap.dedent(before)}\ndef f(*given):\n{body}\n"
    programs.append(Program(name, text, test, says, prompt))

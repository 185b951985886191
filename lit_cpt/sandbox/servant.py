"""The candidate's process: runs its code, then calls its functions as the judge asks. It never sees the tests."""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

from lit_cpt.sandbox.wire import Gone, Line, from_plain, to_plain


def serve(line: Line) -> NoReturn:
    """Answer until the judge is gone."""
    names: dict[str, Any] = {"__name__": "candidate"}
    deeds: dict[str, Callable[..., Any]] = {
        "load": lambda source: load(source, names),
        "describe": lambda wanted: describe(wanted, names),
        "call": lambda name, arguments, keywords: call(names[name], arguments, keywords)}
    while True:
        try:
            deed, *details = line.receive()
        except Gone:
            os._exit(0)
        try:
            answer = {"value": deeds[deed](*details)}
        except BaseException as error:  # SystemExit too: leaving is no answer
            answer = {"error": [type(error).__name__, words_of(error)]}
        line.send(answer)


def load(source: str, names: dict[str, Any]) -> None:
    """Run the candidate's top level."""
    exec(compile(source, "<candidate>", "exec"), names)


def describe(wanted: list[str], names: dict[str, Any]) -> dict[str, Any]:
    """What the candidate has under the names that the tests use: a function, a module, or plain data."""
    found: dict[str, Any] = {}
    for name in wanted:
        value = names.get(name)
        kind = "module" if isinstance(value, types.ModuleType) else "function" if callable(value) else "data"
        with contextlib.suppress(TypeError):  # not plain data: tests that do need it will miss it by name
            if name in names:
                found[name] = [kind, to_plain(value) if kind == "data" else None]
    return found


def call(function: Any, arguments: Any, keywords: Any) -> Any:
    """One call, from plain data to plain data."""
    return to_plain(function(*from_plain(arguments), **from_plain(keywords)))


def words_of(error: BaseException) -> str:
    """An error's text, if it can say it."""
    try:
        return str(error)[:200]
    except BaseException:
        return ""


def silence() -> None:
    """Standard input, output and errors lead nowhere from here on."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the process's whole life

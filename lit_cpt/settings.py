"""Config files: found by path or by name, and read. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from textwrap import shorten
from typing import Any

import yaml

GROUPS = ("recipe", "data", "model", "trainer")
SHIPPED = Path(str(files("lit_cpt"))) / "configs"


def find_config(name: str) -> Path:
    """The file that ``--config name`` means: a path, or the name of a config that lit_cpt ships.

    Raises:
        FileNotFoundError: Neither; the message lists the names.
    """
    for candidate in (Path(name), SHIPPED / name, SHIPPED / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    if Path(name).is_dir():
        raise FileNotFoundError(f"--config {name}: that is a folder; name a file in it.")
    shipped = sorted(str(path.relative_to(SHIPPED).with_suffix("")) for path in SHIPPED.rglob("*.yaml"))
    raise FileNotFoundError(f"--config {name}: there is no such file, and lit_cpt ships no config of that name; "
                            f"it ships {', '.join(shipped)}.")


def expand_configs(argv: Sequence[str]) -> list[str]:
    """``argv`` with every ``--config NAME`` (or ``--config=NAME``, ``-c NAME``) turned into a path.

    Raises:
        FileNotFoundError: There is no such config.
        ValueError: It cannot be read as one.
    """
    expanded: list[str] = []
    for argument in argv:
        if expanded and expanded[-1] in ("--config", "-c") and not argument.startswith("-"):
            argument = checked(argument)
        elif argument.startswith("--config="):
            argument = f"--config={checked(argument.removeprefix('--config='))}"
        expanded.append(argument)
    return expanded


def checked(name: str) -> str:
    """The path of a config that can be read; the parser's own error would not name the file."""
    path = find_config(name)
    read_config(path)
    return str(path)


def read_config(path: str | Path) -> dict[str, Any]:
    """What a config file holds.

    Raises:
        ValueError: It is not text, not YAML, or not a mapping; the message names it.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML in UTF-8: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} {held(content)}; write a mapping such as `recipe: {{...}}`.")
    for group in GROUPS:
        if not isinstance(content.get(group, {}), (dict, str)):
            raise ValueError(f"{path}: `{group}:` {held(content[group])}; write a mapping, or leave it out.")
    return content


def held(value: Any) -> str:
    """What stands where a mapping should."""
    return "holds nothing" if value is None else f"holds {shorten(repr(value), 60)}"


def options(arguments: Sequence[str]) -> Iterator[tuple[str, str | None, list[str]]]:
    """Each option as its key without dashes, its value (None for a flag) and the words it was written in.

    A word that belongs to no option comes with an empty key.

    >>> [(key, value) for key, value, _ in options(["--run", "x", "--json", "--trainer.devices=2"])]
    [('run', 'x'), ('json', None), ('trainer.devices', '2')]
    """
    words = list(arguments)
    while words:
        word = words.pop(0)
        key, equals, value = word.partition("=")
        if word.startswith("--") or word == "-c":
            follows = not equals and bool(words) and not words[0].startswith("--")
            taken = [word, words.pop(0)] if follows else [word]
            yield "config" if key == "-c" else key[2:], value if equals else taken[1] if follows else None, taken
        else:
            yield "", None, [word]


def merged(arguments: Sequence[str]) -> dict[str, Any]:
    """A run's config as plain values: what stands later replaces, ``KEY+`` appends, as `lit-cpt fit` has it.

    Nothing is checked, and only keys of a group, such as ``trainer.callbacks``, are told apart. An option that reaches
    into a list, such as ``--trainer.callbacks.init_args.keep 3``, means its last item.

    Args:
        arguments: Options of `fit`; configs by path.
    """
    result: dict[str, Any] = {}
    for key, value, _ in options(arguments):
        if key == "config" and value is not None:
            lay_over(result, read_config(value))
        elif key:
            put(result, key.split("."), True if value is None else yaml.safe_load(value))
    return result


def lay_over(target: dict[str, Any], config: dict[str, Any]) -> None:
    """Put the members of each group of ``config`` into ``target``, as `merged` does with one config after another."""
    for group, members in config.items():
        for name, member in members.items() if isinstance(members, dict) else [("", members)]:
            put(target, [group, name] if name else [group], member)


def put(target: dict[str, Any], path: list[str], value: Any) -> None:
    """Set the entry that ``path`` leads to, or append to it if the last name ends in ``+``."""
    *way, last = path
    for name in way:
        inner = target.get(name)
        if isinstance(inner, list) and inner:
            inner[-1] = inner = dict(inner[-1]) if isinstance(inner[-1], dict) else {"class_path": inner[-1]}
        elif not isinstance(inner, dict):
            inner = target[name] = {}
        target = inner
    if last.endswith("+"):
        more = value if isinstance(value, list) else [value]
        target[last[:-1]] = [*(target.get(last[:-1]) or []), *more]
    else:
        target[last] = value

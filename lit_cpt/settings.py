"""Config files: found by path or by name, and read. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

SHIPPED = Path(str(files("lit_cpt"))) / "configs"


def find_config(name: str) -> Path:
    """The file that ``--config name`` means: a path, or the name of a config that lit_cpt ships.

    Raises:
        FileNotFoundError: Neither; the message lists the names.
    """
    for candidate in (Path(name), SHIPPED / name, SHIPPED / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
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
        raise ValueError(f"{path} holds {type(content).__name__}, not a mapping such as `recipe: {{...}}`.")
    return content

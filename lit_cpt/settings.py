"""Config files: found by path or by name, merged as the command line merges them. Torch-free."""

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
    """``argv`` with every ``--config NAME`` (or ``--config=NAME``, ``-c NAME``) turned into a path."""
    expanded: list[str] = []
    for argument in argv:
        if expanded and expanded[-1] in ("--config", "-c") and not argument.startswith("-"):
            argument = str(find_config(argument))
        elif argument.startswith("--config="):
            argument = f"--config={find_config(argument.removeprefix('--config='))}"
        expanded.append(argument)
    return expanded


def merge_configs(paths: Sequence[str | Path]) -> dict[str, Any]:
    """The sum of config files, later over earlier: mappings merge, anything else is replaced.

    Raises:
        ValueError: A file is not YAML, or not a mapping.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds {type(content).__name__}, not a mapping such as `recipe: {{...}}`.")
        merged = overlaid(merged, content)
    return merged


def overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``; a ``class_path`` that changes takes its arguments with it."""
    if "class_path" in above and above["class_path"] != below.get("class_path"):
        return above
    both = {key: overlaid(below[key], value) if isinstance(value, dict) and isinstance(below.get(key), dict) else value
            for key, value in above.items()}
    return {**below, **both}

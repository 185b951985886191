"""Prints the oldest versions that pyproject.toml allows, as constraints for pip; `make test-oldest` installs them.

Runs in a fresh virtual environment, before anything is installed: Python 3.10 has no tomllib, so pip's own is used.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
BOUND = re.compile(r"(?P<name>[\w.-]+)(\[[\w,\s-]+\])?\s*>=\s*(?P<version>[\w.]+)")


def lower_bounds(project: dict[str, Any]) -> list[str]:
    """``name==version`` for every requirement of ``project`` that has a lower bound, extras included."""
    extras = project.get("optional-dependencies", {})
    requirements = [*project["dependencies"], *(line for name in sorted(extras) for line in extras[name])]
    found = [BOUND.match(requirement) for requirement in requirements]
    return [f"{bound['name']}=={bound['version']}" for bound in found if bound]


if __name__ == "__main__":
    print("\n".join(lower_bounds(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"])))

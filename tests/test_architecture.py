"""The floors, and the budgets of size: a file imports only from lower floors."""

from __future__ import annotations

import ast
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
FLOORS = [
    "publishing json_lines",
    "units schedules blends events manifest documents intervals shelf sandbox signals weight_files settings adaptive",
    "recipe shards remote occasions evaluations source_facts ledger pauses",
    "plan blend_design orders identity store footprint score_changes background routing phases spikes rollback telling "
    "agenda tally source_losses tensor_parallel float8 objectives objects gradients",
    "stream prepare parallel losses weights report checkpoints counters departures shortfalls curve_lr",
    "microworld harness lab consolidation model_size forecast encoder_decoder mirror sharded_loading export",
    "data module ablation outlook copying",
    "callbacks",
    "arguments cli commands quickstart worlds worlds_command training data_check standalone restarts "
    "ablate_command eval_command eval_data_command checkpoint_command blend_command __main__ __init__ plan_command",
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
FORBIDDEN = {"utils", "common", "helpers", "base"}
DOORS = {"__init__", "__main__"}


def source_files():
    """Every file of the package once: `lit_cpt/callbacks` and `lit_cpt/configs` are links to the top level."""
    files = [path for path in (ROOT / "lit_cpt").rglob("*.py") if path.relative_to(ROOT).parts[1] != "callbacks"]
    return sorted([*files, *(ROOT / "callbacks").glob("*.py")])


FILES = source_files()
named = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def part(path):
    """The module or folder of the package that a file belongs to."""
    place = path.relative_to(ROOT).parts
    return "callbacks" if place[0] == "callbacks" else place[1].removesuffix(".py")


def imports(path):
    """Parts of lit_cpt that a file imports: plain, relative, lazy and for types only."""
    package = ["lit_cpt", *path.relative_to(ROOT).parts[:-1]]
    package = package if part(path) == "callbacks" else package[1:]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [above, node.module]))
            inside = module == "lit_cpt"
            found |= {f"lit_cpt.{alias.name}" if inside and alias.name in FLOOR else module for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            found |= {ast.unparse(node.args[0]).strip("'\"")} if isinstance(node.args[0], ast.Constant) else set()
    ours = [name.split(".") for name in found if name.split(".")[0] == "lit_cpt"]
    return {name[1] if len(name) > 1 else "__init__" for name in ours}


@named
def test_a_file_has_a_floor(path):
    assert part(path) in FLOOR, f"{path.relative_to(ROOT)} stands on no floor: give it one in FLOORS"


@named
def test_a_file_imports_only_from_lower_floors(path):
    mine = part(path)
    folder = mine != "callbacks" and path.parent.name == mine
    door = path.stem == "__init__" and mine == "callbacks"
    assert mine in FLOOR, f"{path.relative_to(ROOT)} stands on no floor: give it one in FLOORS"
    others = imports(path) - ({mine} if folder or door else set())
    upward = {name for name in others if FLOOR.get(name, 0) >= FLOOR[mine]}
    if FLOOR[mine] == len(FLOORS) - 1 and mine != "__init__":
        upward = set()  # the command line's files know each other and the version; the door stays light
    assert not upward, f"{path.relative_to(ROOT)} imports {sorted(upward)}: move the shared part down a floor"


def test_the_floors_see_lazy_relative_and_type_only_imports(tmp_path):
    path = ROOT / "callbacks" / "phase_switch.py"
    assert imports(path) == {"blends", "checkpoints", "recipe", "stream", "telling"}
    assert imports(ROOT / "lit_cpt" / "__init__.py") == {"blends", "recipe", "schedules"}
    assert "callbacks" in imports(ROOT / "callbacks" / "__init__.py")


def code_files():
    return [(path, path.read_text(encoding="utf-8").splitlines()) for path in FILES]


def test_no_file_is_longer_than_400_lines():
    long = {str(path.relative_to(ROOT)): len(lines) for path, lines in code_files() if len(lines) > 400}
    assert not long, f"{long}: look for two ideas in it"


def test_no_function_is_longer_than_60_lines():
    long = {}
    for path, lines in code_files():
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 60:
                long[f"{path.relative_to(ROOT)}:{node.name}"] = node.end_lineno - node.lineno + 1
    assert not long, f"{long}: a function does one thing"


def test_nine_functions_in_ten_are_shorter_than_30_lines():
    sizes = sorted(node.end_lineno - node.lineno + 1 for _, lines in code_files()
                   for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.FunctionDef))
    assert sizes[len(sizes) * 9 // 10] < 30


def test_no_file_is_called_after_nothing_in_particular():
    wrong = [str(path.relative_to(ROOT)) for path in FILES
             if path.stem in FORBIDDEN or (path.stem.startswith("_") and path.stem not in DOORS)]
    assert not wrong, f"{wrong}: name a file after what it is for"


def test_every_source_file_has_a_test_file_named_after_it():
    parts = {path.stem if part(path) == "callbacks" else part(path) for path in FILES} - DOORS
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert not parts - tests, f"no test file for {sorted(parts - tests)}"


def foreign(path):
    """Names of the packages outside the standard library that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"lit_cpt"}


def installed_with(name, extra=""):
    """Distributions that a plain install of ``name`` brings, however far removed."""
    found, waiting = set(), [(canonicalize_name(name), extra)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) not in found:
            found.add((name, extra))
            with suppress(PackageNotFoundError):
                needed = [Requirement(line) for line in requires(name) or []]
                needed = [one for one in needed if not one.marker or one.marker.evaluate({"extra": extra})]
                waiting += [(canonicalize_name(one.name), more) for one in needed for more in ("", *one.extras)]
    return {name for name, _ in found}


def test_a_plain_install_brings_every_package_that_is_imported():
    brought, owners = installed_with("lit-cpt") | {"ray", "torchao"}, packages_distributions()
    missing = {name for path in FILES for name in foreign(path)
               if not brought & {canonicalize_name(owner) for owner in owners.get(name, [name])}}
    assert missing == set()




@pytest.mark.parametrize("module", ["lit_cpt", "lit_cpt.recipe", "lit_cpt.plan", "lit_cpt.manifest"])
def test_the_vocabulary_imports_without_torch(module):
    heavy = ["torch", "lightning", "litdata", "transformers", "matplotlib"]
    code = f"import sys, {module}\nprint([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr

"""The notebooks: what is committed is whole and clean, and each runs from a clean kernel without a network."""

from __future__ import annotations

import ast
import json
import re
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = ["01_quickstart", "02_design_a_recipe", "03_your_data_and_blend", "04_read_a_run"]
PLACES = re.compile(r"(?<![\w.])/(?:work|tmp|home|root|usr|var|opt|Users)/[\w./-]*|[A-Z]:\\\\Users")
WATCH = '''
import socket

known = socket.getaddrinfo

def watched(host, *rest, **more):
    if host not in (None, "", "localhost", "127.0.0.1", "::1"):
        with open({log!r}, "a") as file:
            file.write(f"{{host}}\\n")
        raise OSError(f"{{host}}: no network")
    return known(host, *rest, **more)

socket.getaddrinfo = watched
'''
each = pytest.mark.parametrize("name", NAMES)


def cells_of(notebook):
    """The code cells."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text_of(cell, part="source"):
    """A cell's source, however it is stored."""
    return "".join(cell[part])


def code_of(cell):
    """A cell's Python, without the notebook's own commands."""
    return "\n".join(line for line in text_of(cell).splitlines() if not line.startswith(("%", "!")))


def committed(name):
    """A notebook as it lies in the repository."""
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def stains(notebook):
    """What nobody wants to read in a notebook, by cell."""
    found = []
    for place, cell in enumerate(cells_of(notebook), 1):
        shown = [{kind: data for kind, data in output.get("data", output).items() if not kind.startswith("image")}
                 for output in cell["outputs"]]
        plain = json.dumps(shown)
        found += [(place, output.get("name") or output["output_type"]) for output in cell["outputs"]
                  if output.get("name") == "stderr" or output["output_type"] == "error"]
        found += [(place, path) for path in PLACES.findall(plain)]
        found += [(place, "widget")] * ("jupyter.widget" in plain)
        found += [(place, cell["execution_count"])] * (cell["execution_count"] != place)
    return found


def test_there_are_four_notebooks():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


def test_stains_are_seen():
    cell = {"cell_type": "code", "execution_count": 3, "source": "x", "outputs": [
        {"output_type": "stream", "name": "stderr", "text": "see /home/me/x.py"}, {"output_type": "error"},
        {"output_type": "display_data", "data": {"image/png": "/tmp/A", "application/vnd.jupyter.widget": 1}}]}
    assert stains({"cells": [cell]}) == [(1, "stderr"), (1, "error"), (1, "/home/me/x.py"), (1, "widget"), (1, 3)]


def missing_names(code):
    """What code asks of lit_cpt, and of what it takes from there, that does not exist."""
    tree, taken, missing = ast.parse(code), {}, []
    imports = [(node.module, alias) for node in ast.walk(tree)
               if isinstance(node, ast.ImportFrom) and node.module.startswith("lit_cpt") for alias in node.names]
    for module, alias in imports:
        try:
            exec(ast.unparse(ast.ImportFrom(module, [alias], 0)), taken)
        except ImportError:
            missing.append(f"{module}.{alias.name}")
    asked = [(node.value.id, node.attr) for node in ast.walk(tree)
             if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in taken]
    return missing + [f"{name}.{part}" for name, part in asked if not hasattr(taken[name], part)]


@each
def test_what_is_committed_has_been_run_and_is_clean(name):
    notebook = committed(name)
    assert stains(notebook) == []
    assert any(cell["outputs"] for cell in cells_of(notebook))
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert all(not cell["metadata"] for cell in notebook["cells"])
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 300_000


@each
def test_notebooks_import_and_never_define(name):
    for cell in cells_of(committed(name)):
        code = code_of(cell)
        nodes = [type(node).__name__ for node in ast.walk(ast.parse(code))]
        assert not {"FunctionDef", "AsyncFunctionDef", "ClassDef", "Lambda"} & set(nodes), code
        assert len([line for line in code.splitlines() if line and not line.startswith(("import ", "from "))]) <= 12


@each
def test_what_a_notebook_takes_from_the_package_is_there(name):
    assert missing_names("\n".join(map(code_of, cells_of(committed(name))))) == []


def test_a_name_that_the_package_lacks_is_seen():
    code = "from lit_cpt import plan_of_all\nfrom lit_cpt import quickstart as quick\nquick.build_world; quick.gone(1)"
    assert missing_names(code) == ["lit_cpt.plan_of_all", "quick.gone"]


@pytest.mark.slow
@each
def test_a_notebook_runs_from_a_clean_kernel_without_a_network(name, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(WATCH.format(log=str(tmp_path / "asked.txt")))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.chdir(tmp_path)
    ran = runpy.run_path(str(FOLDER / "execute.py"))["executed"](FOLDER / f"{name}.ipynb")
    assert not (tmp_path / "asked.txt").exists(), (tmp_path / "asked.txt").read_text()
    assert stains(ran) == []
    for new, old in zip(cells_of(ran), cells_of(committed(name)), strict=True):
        if not text_of(old).startswith("%%capture"):  # where only a warning is shown, and not on every processor
            assert [output["output_type"] for output in new["outputs"]] == [
                output["output_type"] for output in old["outputs"]], text_of(old)

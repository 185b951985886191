from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lit_cpt.callbacks

ROOT = Path(__file__).parent.parent
FILES = sorted(path.stem for path in (ROOT / "callbacks").glob("*.py") if path.stem != "__init__")


def python(code, *arguments):
    """What a fresh interpreter at the top of the repository makes of ``code``."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_every_callback_is_found_by_its_name_in_its_file():
    assert sorted(lit_cpt.callbacks.HOMES) == sorted(lit_cpt.callbacks.__all__)
    for name, home in lit_cpt.callbacks.HOMES.items():
        assert home in FILES
        assert getattr(lit_cpt.callbacks, name).__module__ == f"lit_cpt.callbacks.{home}"


def test_a_name_that_is_no_callback_is_refused_with_those_that_are():
    with pytest.raises(AttributeError, match=r"lit_cpt\.callbacks has no 'Nonesuch'; it has .*PhaseSwitchCallback"):
        lit_cpt.callbacks.Nonesuch  # noqa: B018  # asking is the test


IMPORT_EACH = """
import importlib, sys
import lightning.pytorch  # brings transformers itself, by way of torchmetrics
for name in [name for name in sys.modules if name.split(".")[0] in ("transformers", "lm_eval")]:
    del sys.modules[name]
for home in sys.argv[1:]:
    importlib.import_module(f"lit_cpt.callbacks.{home}")
    print(home, *sorted(name for name in sys.modules if name.startswith("lit_cpt.callbacks.")
                        or name in ("transformers", "lm_eval")))
    for name in [name for name in sys.modules if name.startswith("lit_cpt.callbacks.")]:
        del sys.modules[name]
"""


@pytest.mark.slow
def test_importing_one_callback_imports_no_other_and_only_one_of_them_lm_eval():
    files = sorted(FILES, key="eval".__eq__)  # last: what it needs stays
    ran = python(IMPORT_EACH, *files)
    alone = [f"{home} lit_cpt.callbacks.{home}" for home in files]
    assert ran.stdout.splitlines() == [*alone[:-1], f"{alone[-1]} lm_eval transformers"], ran.stderr


def test_importing_the_folder_imports_no_callback_and_no_torch():
    ran = python("import sys, lit_cpt.callbacks\nprint('torch' in sys.modules, 'lightning' in sys.modules)")
    assert ran.stdout.strip() == "False False"


def test_callbacks_imported_from_the_top_of_the_repository_are_refused_with_the_cure():
    ran = python("import callbacks")
    assert ran.returncode == 1
    assert ("ImportError: imported as 'callbacks': run `pip install -e .`, then import `lit_cpt.callbacks`."
            in ran.stderr)

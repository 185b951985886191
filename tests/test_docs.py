"""What README, docs and --help tell a user to write is accepted: commands by their parser, YAML by fit's, Python."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from lit_cpt.cli import COMMANDS, main
from lit_cpt.lab.claims import read_claims

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DEEDS = ["quickstart", "prepare", "data check", "blend suggest", "plan", "fit", "validate", "eval", "eval-data fetch",
         "eval-data check", "export", "checkpoint inspect", "checkpoint consolidate", "worlds", "ablate", "report"]


class Accepted(BaseException):
    """The parser has taken the words."""


@pytest.fixture
def accepts(tmp_path, monkeypatch):
    """Whether a command's parser takes its words; nothing is done. The configs that the docs write are there."""
    monkeypatch.chdir(tmp_path)
    for name, page in (("run.yaml", "README.md"), ("sources.yaml", "docs/recipe.md")):
        (found,) = [block for block in blocks(ROOT / page, "yaml") if block.startswith(f"# {name}")]
        Path(name).write_text(found)
    recipe = yaml.safe_load(Path("run.yaml").read_text())["recipe"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"recipe": recipe}))
    true = ArgumentParser.parse_args

    def parse_args(self, *given, **settings):
        true(self, *given, **settings)
        raise Accepted

    def accepts(words):
        module, function = COMMANDS[words[0]][1].split(":")
        command = getattr(importlib.import_module(module), function)
        monkeypatch.setattr(ArgumentParser, "parse_args", parse_args)
        with pytest.raises(Accepted):
            command(words)
        monkeypatch.setattr(ArgumentParser, "parse_args", true)
        return True

    return accepts


def blocks(page, language):
    """The code blocks of a page in one language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def commands(text):
    """The words of every `lit-cpt` line, its continuations joined, without prompts, comments and what it writes to."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        match = re.match(r"\s*(?:\$ )?(?:torchrun .*? -m (?:-- )?)?lit[-_]cpt (?=[a-z-]+)(.*)", line)
        if match and "..." not in line:
            words = shlex.split(match[1].replace("$SLURM_ARRAY_TASK_ID", "0"), comments=True)
            found.append(words[:words.index(">")] if ">" in words else words)
    return [words for words in found if words and words[0] in COMMANDS]


WRITTEN = [(page.name, words) for page in PAGES for block in blocks(page, "") for words in commands(block)]


@pytest.mark.parametrize(("page", "words"), WRITTEN, ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_command_in_the_docs_is_accepted(page, words, accepts):
    assert accepts(words)


@pytest.mark.parametrize("deed", DEEDS)
def test_help_tells_what_a_command_does_and_how_it_is_called(deed, accepts, capsys):
    assert main([*deed.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: lit-cpt ")
    assert lines[1] == ""
    assert lines[2]
    at = lines.index("Example:")
    assert at < 12, "what it does and the example stand on the first screen"
    assert max(map(len, lines[:24])) <= 120
    examples = commands("\n".join(lines[at + 1: lines.index("", at)]))
    assert any(words[:len(deed.split())] == deed.split() for words in examples)
    assert all(accepts(words) for words in examples)


def test_every_command_is_among_those_whose_help_is_read():
    assert {deed.split()[0] for deed in DEEDS} == set(COMMANDS)


YAML = [(page.name, block) for page in PAGES for block in blocks(page, "yaml")]


@pytest.mark.parametrize(("page", "block"), YAML, ids=[f"{page} {block.split()[0]}" for page, block in YAML])
def test_yaml_in_the_docs_is_accepted(page, block, accepts, tmp_path):
    content = yaml.safe_load(block)
    (tmp_path / "block.yaml").write_text(block)
    if "axes" in content:
        assert accepts(["ablate", "block.yaml", "--plan"])
    elif "claims" in content:
        assert read_claims(tmp_path / "block.yaml")
    elif "sources" in content:
        assert accepts(["blend", "suggest", "block.yaml"])
    else:
        assert accepts(["fit", "--config", "base", "--config", "run.yaml", "--config", "block.yaml"])


PYTHON = [(page.name, block) for page in PAGES for block in blocks(page, "python")]


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[f"{page} {block.split()[0]}" for page, block in PYTHON])
def test_python_in_the_docs_compiles_and_imports_what_there_is(page, block):
    code = re.sub(r"^(?:>>> |\.\.\. )", "", block, flags=re.MULTILINE) if block.startswith(">>>") else block
    code = "\n".join(line for line in code.splitlines() if not re.fullmatch(r"[\d.]+", line))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


def test_links_between_the_docs_lead_somewhere():
    gone = []
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
            file, _, part = target.partition("#")
            there = page.parent / file if file else page
            heads = re.findall(r"^#+ (.*)", there.read_text(), re.MULTILINE) if part and there.is_file() else []
            named = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]
            if not there.exists() or (part and part not in named):
                gone.append(f"{page.name}: {target}")
    assert gone == []

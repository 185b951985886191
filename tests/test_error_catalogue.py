"""The catalogue of wrong inputs: each ends with status 2 and one helpful message, and leaves everything as it was."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from conftest import LENGTH, write_source
from harness_world import build_tokenizer
from test_evaluations import evaluation, score
from transformers import LlamaConfig, LlamaForCausalLM

from lit_cpt.cli import COMMANDS, main

FIT = "fit --config base --config hardware/cpu --config run.yaml --run run"
PLAN = "plan --config run.yaml"
PREPARE = "prepare --tokenizer hf --output out --workers 1"
DATA = "data check run.yaml --steps 2"
RESUME = FIT.replace("--run run", "--run done")


@dataclass(frozen=True)
class Wrong:
    """An input that is wrong.

    Args:
        name: What is wrong with it.
        words: The command, behind `lit-cpt`.
        says: Words that the message must hold, in their order.
        files: What to write into the folder first; None removes.
        make: What else to do there first.
        environment: Variables.
    """

    name: str
    words: str
    says: tuple[str, ...]
    files: dict[str, str | bytes | None] = field(default_factory=dict)
    make: Callable[[Path], object] | None = None
    environment: dict[str, str] = field(default_factory=dict)


def cut(name: str, size: int = 100) -> Callable[[Path], object]:
    """Leaves of a file its first bytes."""
    def make(here: Path) -> None:
        (path,) = here.glob(name)
        path.write_bytes(path.read_bytes()[:size])
    return make


def changed(name: str, **values: object) -> Callable[[Path], object]:
    """Sets keys of a JSON file."""
    def make(here: Path) -> None:
        path = here / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return make


CATALOGUE: list[Wrong] = []


def wrong(name: str, words: str, *says: str, make=None, environment=None, **files) -> None:
    CATALOGUE.append(Wrong(name, words, says, files.pop("files", {}), make, environment or {}))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that is right: two sources, a model, a run that has ended, results, text."""
    return build_world(tmp_path_factory.mktemp("world"))


def build_world(root: Path) -> Path:
    """Write the world."""
    for number, (name, rows) in enumerate({"a": 60, "b": 40}.items()):
        write_source(root / "data" / name, number, rows)
    config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=32)
    LlamaForCausalLM(config).save_pretrained(root / "hf")
    build_tokenizer(root / "hf")
    (root / "run.yaml").write_text(yaml.safe_dump({
        "recipe": {"token_horizon": 4 * 4 * LENGTH, "curve": {"class_path": "Cosine", "init_args": {"eta_max": 1e-2}},
                   "phases": [{"name": "first", "blend": {"weights": {"a": 0.6, "b": 0.4}}}]},
        "model": {"architecture": config.to_dict()},
        "data": {"sources": {"a": "data/a", "b": "data/b"}, "sequence_length": LENGTH, "global_batch": 4,
                 "micro_batch": 4, "workers": 0}}))
    (root / "before.json").write_text(json.dumps(evaluation(score()).describe()))
    (root / "text.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (root / "sources.yaml").write_text("token_horizon: 1B\neta_max: 1e-4\n"
                                       "sources: {web: {tokens: 2B}, qa: {tokens: 1B, kind: qa}}\n")
    before = Path.cwd()
    os.chdir(root)
    try:
        assert main(shlex.split(RESUME) + ["--trainer.limit_val_batches", "0", "--trainer.callbacks",
                                           "lit_cpt.callbacks.RunCheckpointCallback"]) == 0
    finally:
        os.chdir(before)
    return root


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}

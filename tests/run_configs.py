"""The configs of a small run, in a folder to work in, for tests of commands."""

from __future__ import annotations

import yaml
from conftest import LENGTH

from lit_cpt.blends import Blend
from lit_cpt.cli import main
from lit_cpt.recipe import Batch, Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine

FIRST, SECOND = {"a": 0.60, "b": 0.35, "c": 0.05}, {"a": 0.1, "b": 0.2, "c": 0.7}
RECIPE = Recipe(640, Cosine(1e-2), [Phase("first", Blend(FIRST)),
                                    Phase("late", Blend(SECOND), Trigger(eta_over_eta_max=0.2))])
BATCH = Batch(LENGTH, 4, 2)


RUN = ["plan", "--config", "base", "--config", "recipe.yaml", "--config", "data.yaml", "--config", "model.yaml"]


def write_configs(folder, sources):
    """recipe.yaml, data.yaml, and model.yaml with what moves no token."""
    files = {
        "recipe.yaml": {"recipe": RECIPE.describe()},
        "data.yaml": {"data": {"sources": sources, "sequence_length": LENGTH, "global_batch": 4, "micro_batch": 2,
                               "workers": 7, "window": 3}},
        "model.yaml": {"seed_everything": 3, "run": "x", "model": {"pretrained": "nowhere"},
                       "trainer": {"devices": 2, "callbacks+": [{"class_path": "no.such.Callback"}]}}}
    for name, content in files.items():
        (folder / name).write_text(yaml.safe_dump(content))


def printed(capsys, *arguments):
    """What a command prints that ends well."""
    assert main(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out

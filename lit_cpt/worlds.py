"""Small worlds on disk, and models pretrained in them: what the ready grids and the quickstart start from.

A world's folder holds ``text``, ``architecture`` (the tokenizer and a model's config), ``questions`` (tasks of lm-eval)
and ``data/SOURCE``; of each of its models ``runs/MODEL``, how it was pretrained, and ``models/MODEL``, a Hugging Face
folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lit_cpt.events import read_events
from lit_cpt.lab.side_by_side import Job, run_side_by_side
from lit_cpt.microworld import FAMILIES, LABORATORY, SHAPES, Proportions, World, write_corpora, write_model_config
from lit_cpt.microworld.files import write_jsonl
from lit_cpt.publishing import publish_text

PRETRAINING = {"web": 0.70, "books": 0.10, "code": 0.03, "multi": 0.17}
PEAK = 6e-3
ENDED = PEAK / 10  # pretraining's last rate, and continued pretraining's first
STEPS = 3600  # of pretraining
LENGTH, SEQUENCES = 128, 4
ASIDE = "transfer"  # the family that is asked and not averaged
# Share of each source's documents kept for validation; questions have a held-out set of their own.
VALIDATION = {"web": 0.03, "books": 0.03, "code": 0.03, "multi": 0.03, "qa": 0.0, "qa_few": 0.0, "qa_held_out": 0.99,
              "real": 0.03}
FEW = 0.3  # share of the questions in qa_few: seen as often in a run of 3/10 the length


@dataclass(frozen=True)
class Base:
    """A model to pretrain.

    Args:
        shape: Its architecture, one of `microworld.SHAPES`.
        share: Of the usual steps of pretraining.
    """

    shape: str = "dense"
    share: float = 1.0


# early: the paper's ablations continue a model of 1.58T tokens, its recipe one of 8T.
BASES = {"full": Base(), "early": Base(share=0.2), **{shape: Base(shape) for shape in SHAPES if shape != "dense"}}


def build_worlds(output: str, seeds: Sequence[int], models: Sequence[str], workers: int, share: float) -> None:
    """Build worlds and pretrain models in them; what is there already is left as it is.

    Args:
        output: World N goes to ``OUTPUT/N``.
        seeds: A world, and an initialisation of each model, for each.
        models: Names of `BASES`.
        workers: Models to pretrain at once.
        share: Of the usual steps of pretraining.

    Raises:
        ArmFailed: A pretraining failed; its log is named.
        FileExistsError: A model was begun with another share.
    """
    places = [(Path(output) / str(seed), seed, name) for seed in seeds for name in models]
    for root, seed in {root: seed for root, seed, _ in places}.items():
        if not (root / "data" / "qa_few" / "manifest.json").exists():
            print(f"{root}: text, tokens and questions", flush=True)
            world = build_world(root, seed, proportions=LABORATORY)
            questions = world.documents["qa"]
            write_jsonl(root / "text" / "qa_few.jsonl", questions[:round(FEW * len(questions))])
            prepare_sources(root, [*world.documents, "qa_held_out", "qa_few"])
    for root, _, name in places:
        write_shape(root, BASES[name].shape)
    jobs: dict[str, Job] = {}
    for root, seed, name in places:
        base = BASES[name]
        steps = max(10, round(base.share * share * STEPS))
        config = pretraining_config(root, PRETRAINING, steps, seed, base.shape)
        if arguments := fit_arguments(root, name, config):
            jobs[str(root / name)] = Job(root / "runs" / name / "log.txt", partial(list, arguments))
    run_side_by_side(jobs, [{}] * workers)
    for root, _, name in places:
        if not (root / "models" / name).exists():
            export_base(root, name, root / "models" / name, BASES[name].shape)


def build_world(root: Path, seed: int, with_real_text: bool = False, proportions: Proportions | None = None) -> World:
    """The world: text in ``root/text``, tokenizer and model config in ``root/architecture``, ``root/questions``.

    Raises:
        RuntimeError: A question stands in the training text.
    """
    from lit_cpt.microworld.tasks import write_tasks
    from lit_cpt.microworld.tokenizer import train_tokenizer

    world = World(seed, proportions or Proportions(), with_real_text)
    leaks = world.contamination()
    if leaks:
        raise RuntimeError(f"{len(leaks)} questions stand in the training text, the first {leaks[0]!r}")
    if not (root / "text").exists():
        write_corpora(world, root / "text")
    tokenizer = train_tokenizer(world, architecture(root))
    write_model_config(architecture(root), len(tokenizer))
    write_tasks(world, root / "questions", tokenizer.eos_token)
    return world


def architecture(root: Path, shape: str = "dense") -> Path:
    """The folder of a shape's config and tokenizer."""
    return root / ("architecture" if shape == "dense" else f"architecture_{shape}")


def write_shape(root: Path, shape: str) -> None:
    """The folder of a shape, with the tokenizer of the world."""
    if not (folder := architecture(root, shape)).exists():
        shutil.copytree(architecture(root), folder)
        vocabulary = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        write_model_config(folder, vocabulary, shape)


def prepare_sources(root: Path, names: Iterable[str]) -> None:
    """Sources of the world as folders of tokens."""
    from lit_cpt.prepare import prepare

    for name in names:
        prepare([str(root / "text" / f"{name}.jsonl")], str(architecture(root)), str(root / "data" / name),
                validation=VALIDATION[name], workers=1)


def pretraining_config(root: Path, blend: dict[str, float], steps: int, seed: int,
                       shape: str = "dense") -> dict[str, Any]:
    """A run from random weights: 2 % warm-up, then a cosine to a tenth of the peak."""
    decay = {"class_path": "Cosine", "init_args": {"eta_max": PEAK, "eta_min": ENDED}}
    curve = {"class_path": "Warmup", "init_args": {"curve": decay, "fraction": 0.02}}
    recipe = {"token_horizon": steps * SEQUENCES * LENGTH, "curve": curve,
              "phases": [{"name": "pretraining", "blend": {"weights": blend}}]}
    return run_config(root, recipe, {"architecture": str(architecture(root, shape))}, seed)


def run_config(root: Path, recipe: dict[str, Any], model: dict[str, Any], seed: int) -> dict[str, Any]:
    """What all runs in a world share: its sources, and that they are asked its questions."""
    sources = {path.name: str(path) for path in sorted((root / "data").iterdir())
               if path.is_dir() and path.name != "qa_few"}
    asked = {"class_path": "lit_cpt.callbacks.EvalCallback", "init_args": {"suite": suite_settings(root)}}
    data = {"sources": sources, "sequence_length": LENGTH, "global_batch": SEQUENCES, "micro_batch": SEQUENCES,
            "workers": 0, "seed": seed, "validation_blocks": 48}
    return {"seed_everything": seed, "recipe": recipe, "model": model, "data": data,
            "trainer": {"callbacks+": [asked]}}


def suite_settings(root: Path) -> dict[str, Any]:
    """What every model is asked: at its start, where the blend changes, and at its end."""
    return {"tasks": [*FAMILIES, ASIDE], "folder": str(root / "questions"), "aside": [ASIDE]}


def fit_arguments(root: Path, name: str, config: dict[str, Any]) -> list[str]:
    """The `lit-cpt` arguments that train or resume a run; empty if it is finished.

    Raises:
        FileExistsError: The folder holds a run of this name by another recipe.
    """
    run, path = root / "runs" / name, root / "configs" / f"{name}.yaml"
    if run.exists() and yaml.safe_load(path.read_text(encoding="utf-8"))["recipe"] != config["recipe"]:
        raise FileExistsError(f"{run} was begun by another recipe, which is in {path} (after another --rehearse, "
                              "perhaps): name another folder, or delete that run and the model of its name.")
    if any(event["event"] == "finish" for event in read_events(run)):
        print(f"{run} is finished already")
        return []
    publish_text(path, yaml.safe_dump(config, sort_keys=False))
    arguments = ["fit", "--config", "base", "--config", "hardware/cpu", "--config", str(path), "--run", str(run)]
    resume = ["--ckpt_path", "last"] if any((run / "checkpoints").glob("*.ckpt")) else []
    return [*arguments, *resume]


def checkpoint(run: Path) -> Path:
    """A run's last checkpoint."""
    return run / "checkpoints" / "last.ckpt"


def export_base(root: Path, run: str, folder: Path, shape: str = "dense") -> None:
    """The model that a run pretrained as the Hugging Face folder that continuations start from."""
    from lit_cpt.export import export_huggingface
    from lit_cpt.weights import build_model, load_weights

    model = build_model(None, str(architecture(root, shape)))
    load_weights(model, checkpoint(root / "runs" / run))
    export_huggingface(model, folder, tokenizer=architecture(root, shape))

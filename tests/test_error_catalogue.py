"""The catalogue of wrong inputs: each ends with status 2 and one helpful message, and leaves everything as it was.

An entry that is answered well elsewhere too stands here nevertheless: the table is what a user can do wrong, whole.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import yaml
from conftest import LENGTH, write_source
from harness_world import build_tokenizer
from test_evaluations import evaluation, score
from transformers import LlamaConfig, LlamaForCausalLM

from lit_cpt.cli import COMMANDS, main
from lit_cpt.prepare.tokens import load_tokenizer, tokenizer_fingerprint

BLENDED = "[{name: one, blend: {weights: {a: 0.5, b: 0.5}}}, {name: two, blend: {weights: {a: 1.0}}, when: WHEN}]"
SHORT = {"$FIT": "fit --config base --config hardware/cpu --config run.yaml --run run",
         "$RESUME": "fit --config base --config hardware/cpu --config run.yaml --run done --ckpt_path last",
         "$MODEL": "fit --config base --config hardware/cpu --config run.yaml --run run --model.architecture null "
                   "--model.pretrained hf",
         "$PLAN": "plan --config run.yaml", "$CHECK": "data check run.yaml --steps 2",
         "$PREPARE": "prepare --tokenizer hf --workers 1 --output out",
         "$EXPORT": "export --tokenizer hf --output out --checkpoint done",
         "$EVAL": "eval --checkpoint hf --tasks mmlu", "$SUGGEST": "blend suggest"}
GRID = "axes: {lr: {recipe.curve.init_args.eta_max: [1e-3, 1e-4]}}\ncontrol: {lr: 1e-3}"
DONE = "done/checkpoints/step-00000004.ckpt"


@dataclass(frozen=True)
class Wrong:
    """An input that is wrong.

    Args:
        name: What is wrong with it.
        words: The command behind `lit-cpt`; `$` stands for one of SHORT.
        says: Patterns that the message has, in this order.
        files: Written into the folder first; None removes a file.
        make: What else is done there first.
    """

    name: str
    words: str
    says: tuple[str, ...]
    files: dict[str, str | bytes | None] = field(default_factory=dict)
    make: Callable[[Path], object] | None = None

    @property
    def arguments(self) -> list[str]:
        """The words by themselves."""
        first, _, rest = self.words.partition(" ")
        return shlex.split(f"{SHORT.get(first, first)} {rest}")


def wrong(name, words, *says, files=None, make=None):
    return Wrong(name, words, says, files or {}, make)


def with_yaml(name, words, more, *says):
    """A second config that is wrong."""
    return Wrong(name, f"{words} --config more.yaml", says, {"more.yaml": more})


def with_phases(name, phases, *says, words="$PLAN"):
    return with_yaml(name, words, f"recipe: {{phases: {phases}}}", *says)


def with_trigger(name, trigger, *says):
    return with_phases(name, BLENDED.replace("WHEN", trigger), *says)


def with_sources(name, sources, *says, words="blend suggest more.yaml"):
    return Wrong(name, words, says, {"more.yaml": f"token_horizon: 1B\neta_max: 1e-4\nsources: {{{sources}}}\n"})


def with_grid(name, more, *says, words="ablate more.yaml --plan"):
    return Wrong(name, words, says, {"more.yaml": f"base: [run.yaml]\n{more}\n"})


def cut(path, size=100):
    """Leaves of a file its first bytes."""
    return lambda here: (here / path).write_bytes((here / path).read_bytes()[:size])


def without_chunk(here):
    (here / "data/a/chunk-0-1.bin").unlink()


def another_tokenizer(here):
    shutil.rmtree(here / "data/b")
    write_source(here / "data/b", 1, 40, "e" * 64)


CATALOGUE = [
    # Words on the command line ---------------------------------------------------------------------------
    wrong("no such command", "trian --config base", "'trian' is no command", "fit"),
    wrong("an option of plan is mistyped", "$PLAN --recipe.optimizer.weigth_decay 0.1",
          "--recipe.optimizer.weigth_decay", r"Did you mean recipe\.optimizer\.weight_decay\?"),
    wrong("an option of fit is mistyped", "$FIT --data.mikro_batch 2", r"Did you mean data\.micro_batch\?"),
    wrong("an option of fit is abbreviated", "$FIT --data.global 3", "--data.global 3",
          r"Did you mean data\.global_batch\?"),
    wrong("an option of plan is abbreviated", "plan --conf run.yaml", r"Did you mean config\?"),
    wrong("a flag is abbreviated", "$PLAN --js", "unrecognized arguments: --js", r"Did you mean json\?"),
    wrong("an option of report is abbreviated", "report done --out x.html", "--out", r"Did you mean output\?"),
    wrong("an option of eval is mistyped", "$EVAL --limits 3", r"Did you mean limit\?"),
    wrong("an option of eval-data is mistyped", "eval-data check --data x --familys mmlu", r"Did you mean families\?"),
    wrong("a word that belongs nowhere", "plan run.yaml", "unrecognized arguments: run.yaml", "plan --help"),
    wrong("no such deed", "data chek run.yaml", "data chek: there is only `lit-cpt data check CONFIG"),
    wrong("no deed", "checkpoint", "checkpoint inspect PATH", "checkpoint consolidate PATH --output FILE"),
    wrong("an option without its value", "plan --config", "--config: expected one argument", "plan --help"),
    wrong("a word for a number", "$FIT --trainer.max_epochs many",
          "trainer.max_epochs: expected int or null; given value: many"),
    wrong("a word for a count", "$PLAN --recipe.token_horizon lots", "'lots' is not a count", '"300B"'),
    wrong("no such choice", "$PREPARE --input text.jsonl --format csv",
          "format: expected 'auto' or 'jsonl' or 'parquet' or 'txt'; given value: csv"),
    wrong("no such precision", "$FIT --trainer.precision 17", "trainer.precision: expected .*bf16", "given value: 17"),
    wrong("no recipe at all", "plan", r"required: recipe\.token_horizon, recipe\.curve, recipe\.phases", "--help"),
    wrong("no recipe to fit", "fit --run run", r"required: .*recipe\.token_horizon", "fit --help"),
    wrong("an option of prepare is mistyped", "prepare --inptu x", r"Did you mean input\?"),
    wrong("no runs", "report", "required: runs", "report --help"),
    wrong("no configs", "data check", "required: configs", "data check --help"),
    wrong("a seed that is no number", "quickstart --seed one", "seed: expected int; given value: one"),
    wrong("FIELD is missing", "$FIT --allow-change", "--allow-change names no FIELD, such as data.seed"),
    # Config files ----------------------------------------------------------------------------------------
    wrong("an unknown config", "plan --config recipes/papr", "--config recipes/papr: there is no such file",
          "recipes/paper,"),
    wrong("a folder for a config", "$FIT --config data", "--config data: that is a folder; name a file in it"),
    with_yaml("no YAML", "$FIT", "recipe: [1, 2\n", "more.yaml is not YAML in UTF-8", "line 1"),
    with_yaml("a tab in YAML", "$PLAN", "recipe:\n\ttoken_horizon: 5\n", "more.yaml is not YAML", "line 2, column 1"),
    with_yaml("another encoding", "$FIT", "# é".encode("latin-1"), "more.yaml is not YAML in UTF-8", "0xe9"),
    with_yaml("binary", "$PLAN", bytes(range(256)), "more.yaml is not YAML in UTF-8"),
    with_yaml("an empty config", "$FIT", "", "more.yaml holds nothing; write a mapping such as `recipe:"),
    with_yaml("a list for a config", "$PLAN", "- a\n", r"more.yaml holds \['a'\]; write a mapping such as `recipe:"),
    with_yaml("a number for a group", "$PLAN", "recipe: 5\n", "more.yaml: `recipe:` holds 5; write a mapping"),
    with_yaml("an empty group", "$FIT", "trainer:\n", "more.yaml: `trainer:` holds nothing; .*or leave it out"),
    with_yaml("a group is mistyped", "$PLAN", "recpie: {token_horizon: 5}", "a config takes no recpie",
              r"Did you mean recipe\?"),
    with_yaml("a key is mistyped", "$FIT", "data: {sorces: {a: b}}", r"data\.sorces", r"Did you mean data\.sources\?"),
    with_yaml("a key of the Trainer is mistyped", "$FIT", "trainer: {acelerator: cpu}",
              r"Did you mean trainer\.accelerator\?"),
    with_yaml("a key of the optimizer is mistyped", "$FIT", "recipe: {optimizer: {weigth_decay: 5}}",
              r"Did you mean recipe\.optimizer\.weight_decay\?"),
    with_yaml("a key of a curve is mistyped", "$PLAN", "recipe: {curve: {class_path: Cosine, init_args: {eta_mx: 1}}}",
              "recipe.curve: Cosine takes no eta_mx; it takes eta_max, eta_min", r"Did you mean eta_max\?"),
    with_yaml("no such curve", "$PLAN", "recipe: {curve: {class_path: Cosin}}", "recipe.curve", "Cosin"),
    with_yaml("a key of a callback is mistyped", "$FIT", "trainer: {callbacks+: [{class_path: "
              "lit_cpt.callbacks.StabilityCallback, init_args: {treshold: 5}}]}",
              "StabilityCallback takes no treshold; it takes spike, threshold", r"Did you mean threshold\?"),
    with_yaml("no such callback", "$FIT", "trainer: {callbacks+: [{class_path: lit_cpt.callbacks.StabiltyCallback}]}",
              "trainer.callbacks: lit_cpt.callbacks has no 'StabiltyCallback'; it has .*StabilityCallback"),
    with_yaml("a key of data.remote is mistyped", "$PLAN --data.sources.a s3://x/y", "data: {remote: {cach: x}}",
              "data.remote takes no cach; it takes .*cache"),
    wrong("no recipe", "plan --config base", "these configs hold no recipe: add one, such as --config recipes/paper"),
    wrong("no data to check", "data check more.yaml", "no data in these configs; add one, such as", "sources",
          files={"more.yaml": "recipe: {token_horizon: 5}"}),
    # Recipes ---------------------------------------------------------------------------------------------
    with_phases("weights sum wrongly", "[{name: x, blend: {weights: {a: 0.5, b: 0.6}}}]",
                r"weights sum to 1\.1000 \(a 0\.5, b 0\.6\); they must sum to 1", "normalized"),
    with_phases("a negative weight", "[{name: x, blend: {weights: {a: -0.5, b: 1.5}}}]",
                r"weight of source 'a' is -0\.5: a weight is finite and at least 0"),
    with_phases("a word for a weight", "[{name: x, blend: {weights: {a: much}}}]", "recipe.phases", "float", "much"),
    with_phases("no weights", "[{name: x, blend: {weights: {}}}]", "at least one source: write weights such as"),
    with_phases("an unknown source", "[{name: x, blend: {weights: {a: 0.5, c: 0.5}}}]",
                "phase 'x' draws on 'c', but data.sources has 'a', 'b'", "Add data.sources.c: FOLDER", words="$FIT"),
    with_phases("no phases", "[]", "a recipe needs at least one phase"),
    with_phases("a key of a phase is mistyped", "[{name: x, blnd: {weights: {a: 1.0}}}]",
                "Phase takes no blnd.weights.a; it takes name, blend, when"),
    with_phases("the first phase has a trigger", "[{name: x, blend: {weights: {a: 1.0}}, when: {tokens: 5}}]",
                "'x', has when: tokens=5; it begins the run, so leave `when` out"),
    with_trigger("a trigger is mistyped", "{eta_over_eta_mx: 0.2}", r"Did you mean eta_over_eta_max\?"),
    with_trigger("two triggers", "{eta_over_eta_max: 0.2, tokens: 64}", "exactly one of eta_over_eta_max, eta, tokens",
                 "given: eta_over_eta_max, tokens"),
    with_trigger("no trigger", "null", "phase 'two' has no trigger: give it one, such as"),
    with_trigger("a rate that is never reached", "{eta: 1.0e-9}", "eta=1e-09 is never reached", "Lower eta_min, or"),
    with_trigger("a phase behind the end", "{tokens: 3B}", r"'two' \(tokens=3B\)", "Reorder the phases or change"),
    with_trigger("a share above 1", "{fraction: 2}", r"fraction=2\.0 must lie in \(0, 1\), such as 0\.2"),
    with_trigger("a metric without a bound", "{metric: val/a/loss}",
          "'val/a/loss' is no comparison: write NAME < BOUND"),
    with_phases("phases out of order", BLENDED.replace("WHEN", "{tokens: 96}")[:-1] + ", {name: three, blend: "
                "{weights: {a: 1.0}}, when: {tokens: 64}}]", "'three'", "must lie after the phase before it"),
    with_phases("two phases of one name", BLENDED.replace("two", "one").replace("WHEN", "{tokens: 64}"),
                "two phases are called 'one': give each a name of its own"),
    wrong("no tokens", "$PLAN --recipe.token_horizon 0", "token_horizon=0 trains on nothing: give a count such as"),
    wrong("a rate that is none", "$PLAN --recipe.curve.init_args.eta_max .nan", "eta_max=nan must be a positive"),
    wrong("a curve that climbs", "$PLAN --recipe.curve.init_args.eta_min 1", r"eta_min=1\.0 must lie in \[0, eta_max"),
    wrong("betas out of range", "$PLAN --recipe.optimizer.betas [0.9,1.5]", "betas=.*1.5.* must both lie in"),
    # Batches and the Trainer -----------------------------------------------------------------------------
    wrong("no sequence", "$PLAN --data.sequence_length 0", "sequence_length=0 must be at least 1"),
    wrong("a micro batch that does not divide", "$FIT --data.micro_batch 3", "no multiple of micro_batch x ranks",
          "Choose a micro_batch"),
    wrong("shards that do not divide", "$PLAN --data.shards 3", "shards=3 does not divide global_batch=4",
          "Choose a divisor"),
    wrong("workers below 0", "$FIT --data.workers -1", "workers=-1 must be at least 0"),
    wrong("a window of nothing", "$FIT --data.window 0", "window=0 must be at least 1"),
    wrong("a sequence longer than a source", "$FIT --data.sequence_length 600", "source 'a' holds no whole block",
          "shorten sequence_length"),
    wrong("accumulation beside the batch's", "$FIT --trainer.accumulate_grad_batches 3", "leave it out"),
    wrong("more seldom than the run is long", "$FIT --trainer.val_check_interval 50", r"trainer: .*\(50\)",
          "Change the --trainer options"),
    wrong("no GPU here", "fit --config base --config hardware/gpu --config run.yaml --run run",
          "trainer: No supported gpu backend found!", "--config hardware/"),
    wrong("an accelerator without its package", "$FIT --trainer.accelerator tpu", "trainer: .*torch_xla"),
    wrong("no such accelerator", "$FIT --trainer.accelerator gpus", "accelerator='gpus'", "Available names are: .*cpu"),
    wrong("no devices", "$FIT --trainer.devices 0", r"devices='?0'?.*not a valid input", "Change the --trainer"),
    wrong("no such strategy", "$FIT --trainer.strategy shrded", "strategy='shrded'", "Example choices: auto, ddp"),
    wrong("a file for the run", "fit --config base --config run.yaml --run run.yaml",
          "--run run.yaml is a file; name a folder"),
    wrong("a run in a file", "fit --config base --config run.yaml --run run.yaml/x",
          "run.yaml is a file; name a folder"),
    wrong("a mirror that is no store", "$FIT --mirror data", "'data' is no folder in a store",
          "give s3://BUCKET/FOLDER"),
    # Sources ---------------------------------------------------------------------------------------------
    wrong("no such source", "$FIT --data.sources.a gone", "source 'a': there is no folder 'gone'; name one that"),
    wrong("a file for a source", "$PLAN --data.sources.a run.yaml", "there is no folder 'run.yaml'; name one"),
    wrong("a source that was not prepared", "$FIT --data.sources.a hf", "'hf' is not a prepared source",
          "lit-cpt prepare"),
    wrong("a source of another tokenizer than another", "$FIT", "source 'b' .*eeeeee.*source 'a' has sha256",
          "Prepare it again", make=another_tokenizer),
    wrong("a source of another tokenizer than the model", "$MODEL", "source 'b' .*ffffff.*the model .*hf. has",
          "Prepare it again", make=lambda here: write_source(shutil.rmtree(here / "data/b") or here / "data/b", 1, 40)),
    wrong("a vocabulary larger than the model's", "$FIT --model.architecture.vocab_size 16", "the model has 16 tokens",
          "which has 64", "vocab_size=64 or more"),
    wrong("a manifest that is damaged", "$PLAN", "a/manifest.json is damaged", "prepare the source again",
          files={"data/a/manifest.json": "{"}),
    wrong("a manifest of the future", "$PLAN", "has format version 99; this lit_cpt reads up to 1", "Upgrade",
          files={"data/a/manifest.json": '{"format_version": 99}'}),
    wrong("no index", "$FIT", "a/index.json is damaged", "prepare the source again", files={"data/a/index.json": None}),
    wrong("an index that is no JSON", "$PLAN", "a/index.json is damaged", "again", files={"data/a/index.json": "{"}),
    wrong("an index of nothing", "$CHECK", "a/index.json is damaged.*chunks", files={"data/a/index.json": "{}"}),
    wrong("a chunk that is gone", "$FIT", r"a/chunk-0-1\.bin is missing: copy the source again", make=without_chunk),
    wrong("a chunk that ends too early", "$CHECK", r"a/chunk-0-0\.bin has 100 bytes, not 648: copy the source again",
          make=cut("data/a/chunk-0-0.bin")),
    wrong("a validation chunk that ends too early", "$FIT", r"validation/chunk-0-0\.bin has 100 bytes, not",
          make=cut("data/a/validation/chunk-0-0.bin")),
    wrong("no steps to check", "$CHECK --steps 0", "steps=0 must be at least 1"),
    # Models and optimizer states -------------------------------------------------------------------------
    wrong("a model and an architecture", "$FIT --model.pretrained hf",
          "pretrained='hf' and .*'llama', ....: give exactly one"),
    wrong("neither", "$FIT --model.architecture null", "give exactly one"),
    wrong("no such model", "$FIT --model.architecture null --model.pretrained ./gone",
          "./gone: there is no such folder"),
    wrong("no such kind of model", "$FIT --model.architecture.model_type lama", "'lama'",
          "Give a folder with config.json"),
    wrong("a model without config.json", "$MODEL", "pretrained='hf' cannot be read", "Give a folder with config.json",
          files={"hf/config.json": None}),
    wrong("a model without weights", "$MODEL", "pretrained='hf' cannot be read: .*model.safetensors",
          files={"hf/model.safetensors": None}),
    wrong("weights that end too early", "$MODEL", "hf/model.safetensors is damaged or ends too early", "copy",
          make=cut("hf/model.safetensors", 5000)),
    wrong("weights that are none", "$MODEL", "hf/model.safetensors is damaged", files={"hf/model.safetensors": "junk"}),
    wrong("a hub name without a network", "$FIT --model.architecture null --model.pretrained some/model",
          "'some/model'", "couldn't connect", "Give a folder"),
    wrong("attention that is not installed", "$FIT --model.attention flash_attention_2",
          "attention='flash_attention_2' cannot be had", "Leave it out"),
    wrong("experts where there are none", "$FIT --model.router_loss 0.1",
          "LlamaForCausalLM is no mixture of experts: leave"),
    wrong("a weight below 0", "$FIT --model.z_loss -1", r"z_loss=-1\.0 must be a finite weight of at least 0"),
    wrong("an objective of another kind of model", "$FIT --model.objective PrefixLM", "has no encoder: leave it out"),
    wrong("no optimizer state", "$FIT --model.optimizer_state gone.pt", "'gone.pt': no such file. Give a checkpoint"),
    wrong("an optimizer state that is none", "$FIT --model.optimizer_state run.yaml", "'run.yaml' cannot be read",
          "leave it out"),
    wrong("an optimizer state of another model",
          f"$FIT --model.architecture.hidden_size 32 --model.optimizer_state {DONE}",
          r"the optimizer state has shape \(64, 16\)", "it is of another model"),
    # Checkpoints -----------------------------------------------------------------------------------------
    wrong("a run that is there", "fit --config base --config hardware/cpu --config run.yaml --run done",
          "done holds a run already. Resume it with --ckpt_path last, or start another"),
    wrong("nothing to resume", "$FIT --ckpt_path last", "--ckpt_path last: there is no checkpoint in run/checkpoints",
          "Leave --ckpt_path out"),
    wrong("no such checkpoint", "$FIT --ckpt_path gone.ckpt", "gone.ckpt: no such file. Give `last` or a file of"),
    wrong("a checkpoint that ends too early", "$RESUME", "there is no whole checkpoint in done/checkpoints",
          "ends too early", make=cut(DONE)),
    wrong("a checkpoint that is none", "$FIT --ckpt_path run.yaml", "run.yaml is damaged", "is no checkpoint"),
    wrong("another seed", "$RESUME --data.seed 7", "data.seed: 42 -> 7", "or accept the change with --allow-change"),
    wrong("another recipe", "$RESUME --recipe.curve.init_args.eta_max 0.5", r"eta_max=0\.01.* -> .*eta_max=0\.5",
          "--allow-change recipe.curve"),
    wrong("another batch", "$RESUME --data.global_batch 8", "with global_batch=4, this run has 8",
          "--data.global_batch 4"),
    wrong("another source", "$RESUME --data.sources.b data/a", "data.sources.b: content", "--allow-change"),
    wrong("another architecture", "$RESUME --model.architecture.hidden_size 32", "the checkpoint is of another model",
          "Resume with the model of the run's config.yaml"),
    wrong("no such field to change", "$RESUME --data.seed 7 --allow-change data.sed",
          "data.sed: there is no such field",
          "data.seed"),
    wrong("validation of nothing", "validate --config base --config run.yaml --run run --ckpt_path last",
          "no checkpoint"),
    # plan ------------------------------------------------------------------------------------------------
    wrong("no speed", "$PLAN --tokens_per_second 0", "--tokens_per_second 0: give a number above 0, such as"),
    wrong("a picture of no kind", "$PLAN --plot plan.xyz", r"--plot plan\.xyz: name a file that ends in \.png or"),
    wrong("no such GPU", "$PLAN --gpu H1000", "--gpu H1000: choose one of A100", "80,989"),
    # prepare ---------------------------------------------------------------------------------------------
    wrong("no input", "$PREPARE --input gone", "input 'gone' does not exist; give a file, a folder or a glob"),
    wrong("a glob that matches nothing", "$PREPARE --input 'gone/*.txt'", "'gone/\\*.txt' matches no file"),
    wrong("an unknown suffix", "$PREPARE --input run.yaml", "unknown suffix '.yaml'; known are .jsonl", "--format"),
    wrong("a folder of other files", "$PREPARE --input hf --format parquet", "'hf' holds no parquet file", "--format"),
    wrong("a template without a field", "$PREPARE --input text.jsonl --text-template words",
          "must name fields as {name}"),
    wrong("a template that is open", "$PREPARE --input text.jsonl --text-template '{text'", "write fields as {name}"),
    wrong("no shard", "$PREPARE --input text.jsonl --shard 1of2", "shard='1of2' is none: give i/n"),
    wrong("one shard too many", "$PREPARE --input text.jsonl --shard 2/2", "shard=2/2 is none", "from 0 to n - 1"),
    wrong("a merge of nothing", "$PREPARE --input text.jsonl --merge", "1 of 1 parts are missing", "then merge"),
    wrong("a shard and a merge", "$PREPARE --input text.jsonl --merge --shard 0/2", "goes with neither merge nor"),
    wrong("no tokenizer", "prepare --tokenizer ./gone --output out --input text.jsonl",
          "'./gone' is no folder; give one"),
    wrong("a file for the output", "prepare --tokenizer hf --output run.yaml --input text.jsonl",
          "run.yaml' is a file"),
    wrong("an output that is something else", "prepare --tokenizer hf --output done --input text.jsonl",
          "holds something else", "nothing was deleted", "Name a new or empty folder"),
    wrong("a URL for the output", "prepare --tokenizer hf --output s3://x/y --input text.jsonl", "is no local folder"),
    wrong("a share above 1", "$PREPARE --input text.jsonl --validation 1.5", r"validation=1\.5 is no share; give"),
    wrong("no workers", "prepare --tokenizer hf --output out --input text.jsonl --workers 0", "workers=0 is too few"),
    wrong("another engine's option", "$PREPARE --input text.jsonl --address x:1", "address=x:1 is for a Ray cluster"),
    # blend suggest ---------------------------------------------------------------------------------------
    wrong("no sources", "blend suggest gone.yaml", "gone.yaml: there is no such file; write one such as"),
    with_sources("a key of a source is mistyped", "web: {tokns: 5}", "takes no tokns", r"Did you mean tokens\?"),
    with_sources("no such tier", "web: {tokens: 5B, tier: best}", "tier='best' is not known; choose low, medium, high"),
    with_sources("no questions", "web: {tokens: 5B}", "no source is of kind qa", "--qa.qa_share 0"),
    with_sources("shares of some", "web: {tokens: 5B, share: 0.4}, books: {tokens: 5B}, qa: {tokens: 5B, kind: qa}",
                 "source 'books' has no share, but others have"),
    with_sources("a score without a target", "web: {tokens: 5B, score: 0.4}, qa: {tokens: 5B, kind: qa}",
                 r"score=0\.4 alone tells no weakness: give both"),
    with_sources("too little text", "web: {tokens: 5M}, qa: {tokens: 5B, kind: qa}", "Lower token_horizon to",
          "add text"),
    with_sources("more than the whole", "web: {tokens: 5B}, qa: {tokens: 5B, kind: qa}", r"qa_share=0\.5", "at most 1",
                 words="blend suggest more.yaml --qa.replay 0.9 --qa.qa_share 0.5"),
    # ablate ----------------------------------------------------------------------------------------------
    with_grid("no arms", "", "more.yaml", "axes"),
    with_grid("a control that is no arm", "axes: {lr: {recipe.curve.init_args.eta_max: [1e-3, 1e-4]}}\n"
              "control: {lr: 0.5}", "0.5"),
    with_grid("an arm's key is mistyped", "axes: {a: {x: {recipe.tokens_horizon: 5}, y: {}}}\ncontrol: {a: y}",
              "arm a=x", "tokens_horizon"),
    with_grid("no room for an arm", GRID, "--workers 0", words="ablate more.yaml --output lab --workers 0"),
    with_grid("nowhere to train arms", GRID, "--output names no folder", words="ablate more.yaml"),
    with_grid("a variable that the grid lacks", GRID, "no variable 'worlds'",
              words="ablate more.yaml --plan --set worlds=x"),
    with_grid("a rehearsal of nothing", GRID, "--rehearse 0: give a share", words="ablate more.yaml --rehearse 0"),
    with_grid("claims that are none", GRID, "has no `claims:`",
              words="ablate more.yaml --output lab --claims more.yaml"),
    with_grid("a task that is none", GRID, "--task 4/4: write I/N", words="ablate more.yaml --output lab --task 4/4"),
    wrong("no such grid", "ablate ablations/first_four", "ablations/first_three"),
    wrong("a base that is not known", "worlds --models huge", "--models huge: there are full, early"),
    # eval, eval-data -------------------------------------------------------------------------------------
    wrong("nothing to evaluate", "eval", "--checkpoint is missing: name a checkpoint"),
    wrong("no such model to evaluate", "eval --checkpoint ./gone", "./gone: there is no such file or folder. Give"),
    wrong("no evaluation data", "$EVAL", "there is no cais/mmlu", "eval-data fetch --data eval-data"),
    wrong("evaluation data that are elsewhere", "$EVAL --data data", "data has no cais/mmlu",
          "eval-data fetch --data data"),
    wrong("no documents", "$EVAL --limit 0", "limit=0 must be 1 or more documents"),
    wrong("no tokenizer to evaluate with", "eval --checkpoint done --tasks mmlu",
          "names no tokenizer: give its folder"),
    wrong("a result into no folder", "$EVAL --json gone/x.json", "--json gone/x.json: there is no folder gone"),
    wrong("a result into a folder", "$EVAL --json data", "--json data is a folder; name a file"),
    wrong("one result to compare", "eval --compare before.json", "--compare: expected 2 arguments"),
    wrong("no result to compare", "eval --compare before.json gone.json", "gone.json: there is no such file. Give one"),
    wrong("a result that is none", "eval --compare before.json run.yaml", "run.yaml holds no evaluation",
          "give a file that"),
    wrong("results that have nothing in common", "eval --compare before.json other.json",
          "nothing can be compared: before.json has scores of mmlu, other.json of winograd. Give two results"),
    wrong("no such family", "eval-data check --data data --families mmul", "no family mmul; there are mmlu"),
    wrong("data that are not whole", "eval-data check --data data --families mmlu", "data is not whole",
          "eval-data fetch --data data --families mmlu"),
    wrong("a file for the data", "eval-data fetch --data run.yaml", "run.yaml is a file; the mirror is a folder"),
    wrong("a mirror that is gone", "eval-data fetch --data new --from gone", "gone/cais/mmlu: there is no such folder"),
    # export, checkpoint, report, quickstart --------------------------------------------------------------
    wrong("an output that is there", "export --tokenizer hf --output hf --checkpoint done", "--overwrite"),
    wrong("no such dtype", "$EXPORT --dtype int8", "--dtype int8: choose float32, bfloat16, float16"),
    wrong("an export of nothing", "export --tokenizer hf --output out --checkpoint data",
          "neither a Hugging Face folder"),
    wrong("an export of half a checkpoint", f"export --tokenizer hf --output deep/out --checkpoint {DONE}",
          "is damaged",
          make=cut(DONE)),
    wrong("an export of another's checkpoint", "export --output out --checkpoint x.ckpt", "was not written by lit_cpt",
          make=lambda here: torch.save({"a": 1}, here / "x.ckpt")),
    wrong("an export without a tokenizer", "export --output deep/out --checkpoint done --tokenizer some/model",
          "no tokenizer can be read from some/model", "Give a folder with tokenizer.json"),
    wrong("a look at nothing", "checkpoint inspect data", "data: there is no checkpoint in it"),
    wrong("a file to be made of one", "checkpoint consolidate done --output x.ckpt", "there is nothing to consolidate"),
    wrong("a consolidation into nothing", "checkpoint consolidate done", "--output is missing; name the file"),
    wrong("a report of no run", "report data", "data is no run folder", "Give the folder that `lit-cpt fit` wrote"),
    wrong("a page that is a folder", "report done --output data", "--output data is a folder; name the page, such as"),
    wrong("no such control", "report done --control x", r"control='x' is none of the runs \(done\): name one"),
    wrong("a quickstart in something else", "quickstart --out data", "--out data is a file or holds something else"),
    wrong("a quickstart in a file", "quickstart --out run.yaml/x", "run.yaml/x: not a directory"),
]
SLOW = [
    wrong("a field that records lack", "$PREPARE --input text.jsonl --text-template '{question}'",
          "text.jsonl:1: no key 'question'; the keys are 'text'", "--on-error skip"),
    wrong("a gzip that ends in the middle", "$PREPARE --input x.jsonl.gz", "the gzip stream ends in the middle",
          files={"x.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 99)[:40]}),
    wrong("text without text", "$PREPARE --input x.txt", "no document of the inputs has any text", files={"x.txt": ""}),
    wrong("no such task", "eval --checkpoint hf --tasks mmul", r"no task, group or tag mmul: did you mean mmlu\?"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with all that is right: two sources, a model, a run that has ended, a result, text."""
    root = tmp_path_factory.mktemp("world")
    config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=32)
    LlamaForCausalLM(config).save_pretrained(root / "hf")
    build_tokenizer(root / "hf")
    fingerprint = tokenizer_fingerprint(load_tokenizer(str(root / "hf")))
    for number, (name, rows) in enumerate({"a": 60, "b": 40}.items()):
        write_source(root / "data" / name, number, rows, fingerprint)
    (root / "run.yaml").write_text(yaml.safe_dump({
        "recipe": {"token_horizon": 4 * 4 * LENGTH, "curve": {"class_path": "Cosine", "init_args": {"eta_max": 1e-2}},
                   "phases": [{"name": "first", "blend": {"weights": {"a": 0.6, "b": 0.4}}}]},
        "model": {"architecture": config.to_dict()},
        "data": {"sources": {"a": "data/a", "b": "data/b"}, "sequence_length": LENGTH, "global_batch": 4,
                 "micro_batch": 4, "workers": 0}}))
    for name, family in (("before", "mmlu"), ("other", "winograd")):
        (root / f"{name}.json").write_text(json.dumps(evaluation(score(family)).describe()))
    (root / "text.jsonl").write_text('{"text": "one"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main([*shlex.split(SHORT["$RESUME"].replace("last", "auto")), "--trainer.limit_val_batches", "0",
                     "--trainer.callbacks", "lit_cpt.callbacks.RunCheckpointCallback"]) == 0
    return root


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A copy of the world to spoil, without a network."""
    folder = tmp_path / "here"
    shutil.copytree(world, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("LIT_CPT_EVAL_DATA", raising=False)
    return folder


def tree(folder):
    """Everything below a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def spoil(entry, here):
    """Make the input of an entry."""
    for name, content in entry.files.items():
        if content is None:
            (here / name).unlink()
        else:
            (here / name).write_bytes(content.encode() if isinstance(content, str) else content)
    if entry.make:
        entry.make(here)


def assert_told(entry, status, told):
    """Status 2, and one message at the end of what was said, which helps."""
    assert status == 2, told
    *before, last = told.strip().splitlines()
    command = entry.arguments[0]
    start = f"lit-cpt {command}: " if command in COMMANDS else "lit-cpt: "
    assert last.startswith(start), told
    assert not [line for line in before if line.startswith(("lit-cpt", "Traceback", "usage"))], told
    assert len(last) < 900, len(last)
    place = 0
    for pattern in entry.says:
        found = re.compile(pattern).search(last, place)
        assert found, f"{pattern!r} is not in: {last}"
        place = found.start()


@pytest.mark.parametrize("entry", [*CATALOGUE, *(pytest.param(entry, marks=pytest.mark.slow) for entry in SLOW)],
                         ids=lambda entry: entry.name)
def test_a_wrong_input_gets_one_helpful_message_and_leaves_nothing(entry, here, capsys):
    spoil(entry, here)
    before = tree(here)
    status = main(entry.arguments)
    assert_told(entry, status, capsys.readouterr().err)
    after = tree(here)
    assert [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)] == []


def test_the_catalogue_knows_every_command_and_each_mistake_once():
    entries = [*CATALOGUE, *SLOW]
    assert len({(entry.name, entry.words) for entry in entries}) == len(entries)
    assert {entry.arguments[0] for entry in entries} >= set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["another seed", "a chunk that is gone", "no runs"])
def test_a_process_answers_alike(name, here):
    entry = next(one for one in CATALOGUE if one.name == name)
    spoil(entry, here)
    before = tree(here)
    ran = subprocess.run([sys.executable, "-m",
        "lit_cpt", *entry.arguments], capture_output=True, text=True, check=False,
                         env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert_told(entry, ran.returncode, ran.stderr)
    assert tree(here) == before

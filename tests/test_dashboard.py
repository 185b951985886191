"""What a run leaves for TensorBoard, read back from its event files."""

from __future__ import annotations

import re
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from conftest import LENGTH, SaveAt, fit, make_trainer
from harness_world import build_mirror, build_tokenizer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.data import DataLoader

from lit_cpt.blends import Blend
from lit_cpt.callbacks import (
    DashboardCallback,
    EvalCallback,
    PhaseSwitchCallback,
    ThroughputCallback,
    TokenLedgerCallback,
)
from lit_cpt.callbacks.dashboard import CHARTS, OUTCOMES, boards, layout, numbers
from lit_cpt.data import BlendDataModule
from lit_cpt.harness import Suite
from lit_cpt.module import ContinuedPretraining
from lit_cpt.plan import plan, render
from lit_cpt.recipe import Batch, Phase, Recipe, Trigger
from lit_cpt.report.runs import load_run
from lit_cpt.schedules import Cosine

FIRST, SECOND = {"a": 0.6, "b": 0.4}, {"a": 0.2, "c": 0.8}
GLOBAL, STEPS, SWITCH = 4, 20, 15
RECIPE = Recipe(STEPS * GLOBAL * LENGTH, Cosine(1e-2), (
    Phase("general", Blend(FIRST)), Phase("qa", Blend(SECOND), Trigger(eta_over_eta_max=0.2))))
MIXTURE = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2,
           "vocab_size": 512, "max_position_embeddings": 2048}


def board(folder):
    return TensorBoardLogger(folder, name="", version="", default_hp_metric=False)


def train(sources, architecture, folder, *callbacks, resume=None):
    module = ContinuedPretraining(RECIPE, architecture=architecture, router_loss=0.01)
    data = BlendDataModule(RECIPE, sources, LENGTH, GLOBAL, GLOBAL, workers=0, validation_blocks=2)
    fit(module, data, folder, PhaseSwitchCallback(), TokenLedgerCallback(), ThroughputCallback(), DashboardCallback(),
        *callbacks, resume=resume, logger=board(folder), log_every_n_steps=5, val_check_interval=10)


def written(folder, plugin):
    """Every value of a plugin that the folder's event files hold, oldest first."""
    files = sorted(folder.glob("events.out.tfevents.*"))
    values = [value for file in files for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    return [value for value in values if value.metadata.plugin_data.plugin_name == plugin]


def layouts(folder):
    """Each layout that was written: category -> chart -> patterns."""
    found = []
    for value in written(folder, "custom_scalars"):
        proto = Layout.FromString(value.tensor.string_val[0])
        found.append({one.title: {chart.title: list(chart.multiline.tag) for chart in one.chart}
                      for one in proto.category})
    return found


def table(folder):
    """What HPARAMS gets: metrics, numbers, and how often a run was begun and ended."""
    parts = [HParamsPluginData.FromString(value.metadata.plugin_data.content) for value in written(folder, "hparams")]
    kinds = [part.WhichOneof("data") for part in parts]
    metrics = [info.name.tag for info in parts[0].experiment.metric_infos]
    return metrics, dict(parts[1].session_start_info.hparams), kinds


def scalars(folder):
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {tag: [(point.step, point.value) for point in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


@pytest.fixture(scope="module")
def run(sources, tiny, tmp_path_factory):
    """A run of two phases, validated, evaluated, of a mixture of experts: it has something for every chart."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = build_tokenizer(folder / "tokenizer")
    suite = Suite(["hellaswag", "mmlu_virology"], data=str(build_mirror(folder / "mirror", documents=2)))
    train(sources, tiny | MIXTURE, folder, EvalCallback(suite, tokenizer=tokenizer), SaveAt(folder, 12))
    return folder


def test_every_chart_has_tags_that_the_run_wrote_and_every_pattern_matches_one(run):
    known, last = scalars(run), layouts(run)[-1]
    assert {category: list(charts)[-len(CHARTS[category]):] for category, charts in last.items()} == {
        category: list(charts) for category, charts in CHARTS.items()}
    assert list(last["loss"]) == ["a", "b", "c", "over all sources"]
    for charts in last.values():
        for pattern in (pattern for patterns in charts.values() for pattern in patterns):
            assert any(re.match(pattern, tag) for tag in known), pattern


def test_the_learning_rate_is_a_line_for_each_phase(run):
    known = scalars(run)
    assert [step for step, _ in known["eta/general"]] == [5, 10, 15]
    assert [step for step, _ in known["eta/qa"]] == [20]
    assert known["eta/general"] + known["eta/qa"] == known["train/eta"]


def test_the_mean_of_the_validation_losses_is_told_and_is_no_source(run):
    known = scalars(run)
    assert [step for step, _ in known["val/mean_loss"]] == [10, 20]
    losses = [known[f"val/{name}/loss"][-1][1] for name in "abc"]
    assert known["val/mean_loss"][-1][1] == pytest.approx(sum(losses) / 3)
    assert sorted(load_run(run).validation) == ["a", "b", "c"]


def test_scores_begin_at_no_change(run):
    steps, changes = zip(*scalars(run)["eval/hellaswag/change"], strict=True)
    assert (steps, changes[0]) == ((0, SWITCH, STEPS), 0.0)


def test_recipe_and_plan_can_be_read(run, sources):
    texts = {value.tag: value.tensor.string_val[0].decode() for value in written(run, "text")}
    blocks = BlendDataModule(RECIPE, sources, LENGTH, GLOBAL, GLOBAL)
    table_of = render(plan(RECIPE, blocks.batch, {"a": 400, "b": 150, "c": 37}))
    assert texts["plan/text_summary"] == f"```\n{table_of}\n```"
    assert "eta_over_eta_max: 0.2" in texts["recipe/text_summary"]


def test_runs_can_be_told_apart_by_their_numbers_and_compared_by_what_they_logged(run):
    metrics, told, kinds = table(run)
    assert (tuple(metrics), kinds) == (OUTCOMES, ["experiment", "session_start_info", "session_end_info"])
    assert set(OUTCOMES) <= set(scalars(run))
    assert (told["eta_max"].number_value, told["switch"].number_value) == (0.01, SWITCH / STEPS)
    assert told["weights"].string_value == "general: a 0.6, b 0.4; qa: a 0.2, c 0.8"


def test_every_recipe_has_the_same_numbers():
    one = Recipe(RECIPE.horizon, RECIPE.curve, RECIPE.phases[:1])
    batch = Batch(LENGTH, GLOBAL)
    found = numbers(one, plan(one, batch))
    assert found.keys() == numbers(RECIPE, plan(RECIPE, batch)).keys()
    assert (found["switch"], found["horizon"], found["tokens_per_step"]) == (1.0, 640, 32)


def test_a_resumed_run_does_not_repeat_what_its_folder_has(run, sources, tiny):
    before = len(layouts(run))
    train(sources, tiny | MIXTURE, run, resume=run / "step-12.ckpt")
    assert len(layouts(run)) == before
    assert [value.tag for value in written(run, "text")] == ["plan/text_summary", "recipe/text_summary"]
    assert table(run)[2] == ["experiment", "session_start_info", "session_end_info", "session_end_info"]


class Foreign(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, index):
        loss = self.layer(batch).mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train_foreign(folder, logger, callback):
    trainer = make_trainer(folder, callback, max_steps=4, log_every_n_steps=2, logger=logger)
    trainer.fit(Foreign(), DataLoader(torch.ones(4, 2)))


def test_in_a_foreign_project_what_there_is_is_drawn_in_each_folder_anew(tmp_path):
    callback = DashboardCallback()
    callback.load_state_dict({"folder": "elsewhere", "drawn": layout(["eta/all"])})
    train_foreign(tmp_path, board(tmp_path), callback)
    assert layouts(tmp_path)[-1] == layout(["train/loss", "eta/all"])
    assert [step for step, _ in scalars(tmp_path)["eta/all"]] == [2, 4]
    assert written(tmp_path, "text") == written(tmp_path, "hparams") == []


def test_other_loggers_and_ranks_are_left_alone(tmp_path):
    train_foreign(tmp_path, CSVLogger(tmp_path, name="", version=""), DashboardCallback())
    assert "eta/all" not in (tmp_path / "metrics.csv").read_text()
    assert list(tmp_path.glob("**/events*")) == []
    assert boards(SimpleNamespace(loggers=[board(tmp_path)], is_global_zero=False)) == []

"""EvalCallback in projects that have nothing else of ours, and in runs of lit_cpt."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from conftest import LENGTH, make_trainer
from harness_world import SUBJECTS, build_mirror, build_model, build_tokenizer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch.utils.data import DataLoader

from lit_cpt.callbacks import EvalCallback, GracefulStopCallback, RunCheckpointCallback
from lit_cpt.callbacks.eval import refuse_strategy
from lit_cpt.cli import main
from lit_cpt.events import read_events
from lit_cpt.harness import Effort, Suite
from lit_cpt.occasions import Occasions
from lit_cpt.sandbox import Sandbox, SandboxUnavailable

MMLU = [f"mmlu_{name}" for name in SUBJECTS]
ROOM = {"humaneval": 8, "mgsm": 8}
QUIET = Occasions(turns=())


class Project(pl.LightningModule):
    """Somebody's module: a Hugging Face model, dropout and AdamW; nothing of lit_cpt."""

    def __init__(self, broken_at=None):
        super().__init__()
        self.net, self.broken_at = build_model(attention_dropout=0.1), broken_at
        self.losses = []

    def training_step(self, batch, index):
        if index == self.broken_at:
            with torch.no_grad():
                self.net.lm_head.weight.fill_(float("nan"))
        loss = self.net(input_ids=batch, labels=batch).loss
        self.losses.append(float(loss))
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def loader(batches):
    torch.manual_seed(3)
    return DataLoader(torch.randint(3, 512, (2 * batches, 24)), batch_size=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return build_mirror(folder / "mirror", documents=4), build_tokenizer(folder / "tokenizer")


@pytest.fixture
def suite(world):
    return Suite(["hellaswag", *MMLU[:1]], data=str(world[0]), limit=2)


def callback(world, suite, when=QUIET, effort=None, **settings):
    settings = {"model": "net", "tokenizer": world[1], **settings}
    return EvalCallback(suite, when, effort or Effort(token_budget=512), **settings)


def train(folder, steps, *callbacks, module=None, **settings):
    """Losses of a run."""
    torch.manual_seed(1)
    module = module or Project()
    make_trainer(folder, *callbacks, max_steps=steps, **settings).fit(module, loader(steps))
    return module.losses


def files(folder):
    """step -> the evaluation written for it."""
    return {int(path.stem.removeprefix("step")): json.loads(path.read_text())
            for path in sorted(Path(folder, "evals").glob("step*.json"))}


def statuses(found):
    return {name: one["status"] for name, one in found["failures"].items()}


# When ------------------------------------------------------------------------------------------------------


def test_it_evaluates_at_the_start_every_so_many_steps_and_at_the_end(world, suite, tmp_path):
    when = Occasions(every_steps=2, turns=("start", "end"))
    train(tmp_path, 5, callback(world, suite, when))
    found = files(tmp_path)
    assert {step: one["reasons"] for step, one in found.items()} == {
        0: ["start"], 2: ["steps"], 4: ["steps"], 5: ["end"]}
    assert [one["full"] for one in found.values()] == [True, False, False, True]
    assert {step: one["families"]["hellaswag"]["items"] for step, one in found.items()} == {0: 4, 2: 2, 4: 2, 5: 4}


def test_what_comes_next_is_foretold_for_a_progress_bar(world, suite, tmp_path):
    class Listens(pl.Callback):
        told: dict[int, object] = {}  # noqa: RUF012

        def on_train_batch_end(self, trainer, *_):
            self.told[trainer.global_step] = one.coming(trainer)

    one = callback(world, suite, Occasions(every_steps=3, turns=("end",)))
    train(tmp_path, 5, one, Listens())
    assert [Listens.told[step] for step in (1, 3, 4)] == [("evaluation", 3), ("evaluation", 5), ("evaluation", 5)]
    train(tmp_path, 2, one := callback(world, suite), Listens())
    assert Listens.told[1] is None


def test_the_sample_is_the_same_at_every_step(world, suite, tmp_path):
    train(tmp_path, 2, callback(world, suite, Occasions(every_steps=1, turns=())))
    first, second = files(tmp_path).values()
    assert first["families"]["hellaswag"]["documents"] == second["families"]["hellaswag"]["documents"]


def test_gradient_accumulation_counts_optimizer_steps(world, suite, tmp_path):
    callbacks = callback(world, suite, Occasions(every_steps=2, turns=("end",)))
    make_trainer(tmp_path, callbacks, max_steps=3, accumulate_grad_batches=2).fit(Project(), loader(6))
    assert {step: one["reasons"] for step, one in files(tmp_path).items()} == {2: ["steps"], 3: ["end"]}


def test_fractions_of_a_run_whose_end_is_known(world, suite, tmp_path):
    train(tmp_path, 4, callback(world, suite, Occasions(fractions=(0.5, 1.0), turns=())))
    assert list(files(tmp_path)) == [2, 4]


def test_a_phase_that_begins_is_a_turn(world, suite, tmp_path):
    class Switching(pl.Callback):
        def __init__(self):
            self.switches = []

        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 2:
                self.switches.append({"phase": "qa", "step": 2})

    train(tmp_path, 3, callback(world, suite, Occasions(turns=("phase",))), Switching())
    assert {step: one["reasons"] for step, one in files(tmp_path).items()} == {2: ["phase"]}


# What it leaves alone --------------------------------------------------------------------------------------


def arms(world, tmp_path, steps, suite, effort=None, **settings):
    """Losses of a run without the callback and of one with it."""
    every = Occasions(every_steps=max(1, steps // 4))
    plain = train(tmp_path / "plain", steps, module=Project(**settings))
    return plain, train(tmp_path / "asked", steps, callback(world, suite, every, effort), module=Project(**settings))


def test_training_goes_on_to_the_same_losses(world, suite, tmp_path):
    plain, asked = arms(world, tmp_path, 8, suite)
    assert plain == asked
    assert len(files(tmp_path / "asked")) == 5


@pytest.mark.slow
@pytest.mark.parametrize("case", ["healthy", "data missing", "out of time", "broken weights"])
def test_two_hundred_losses_are_the_same_whatever_becomes_of_the_evaluation(world, suite, tmp_path, case):
    suite = Suite(suite.tasks, data=str(tmp_path / "nothing"), limit=2) if case == "data missing" else suite
    effort = Effort(seconds=1e-6) if case == "out of time" else None
    settings = {"broken_at": 40} if case == "broken weights" else {}
    plain, asked = arms(world, tmp_path, 200, suite, effort, **settings)
    assert len(plain) == 200
    assert torch.equal(torch.tensor(plain), torch.tensor(asked)) or case == "broken weights"
    assert torch.tensor(plain).allclose(torch.tensor(asked), rtol=0.0, atol=0.0, equal_nan=True)
    last = statuses(files(tmp_path / "asked")[200])
    assert last.get("hellaswag") == {"healthy": None, "data missing": "disabled", "out of time": "disabled",
                                     "broken weights": "nonfinite"}[case]


def test_the_trainers_own_checkpoints_and_hooks_are_left_alone(world, suite, tmp_path):
    trainer = make_trainer(tmp_path, callback(world, suite, Occasions(every_steps=1)), max_steps=2)
    trainer.fit(Project(), loader(2))
    assert not list(tmp_path.rglob("*.ckpt"))


# What goes wrong -------------------------------------------------------------------------------------------


def test_a_family_without_data_is_named_before_the_first_step_and_left_out_in_the_end(world, tmp_path, caplog):
    mirror = shutil.copytree(world[0], tmp_path / "mirror")
    shutil.rmtree(mirror / "Rowan")
    suite = Suite(["hellaswag", MMLU[0]], data=str(mirror), limit=1)
    with caplog.at_level(logging.INFO):
        train(tmp_path / "run", 4, callback(world, suite, Occasions(every_steps=1, turns=("start",))))
    found = files(tmp_path / "run")
    assert [statuses(one)["hellaswag"] for one in found.values()] == ["unavailable"] * 3 + ["disabled"] * 2
    assert all(MMLU[0] in one["families"] for one in found.values())
    failure = found[0]["failures"]["hellaswag"]
    assert "has no Rowan/hellaswag" in failure["reason"]
    assert "FileNotFoundError" in failure["traceback"]
    said = [record.getMessage() for record in caplog.records]
    before = next(place for place, text in enumerate(said) if text.startswith("evaluating"))
    assert any("hellaswag cannot be evaluated" in text for text in said[:before])
    assert any("left out from here on" in text for text in said)


def test_an_error_inside_a_task_is_recorded_with_its_traceback(world, tmp_path):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "data.jsonl").write_text('{"text": "red", "answer": "cat"}\n')
    (tasks / "broken.py").write_text("def grade(doc, results):\n    return {'acc': 1 / 0}\n")
    (tasks / "broken.yaml").write_text(
        "task: broken\ndataset_path: json\ndataset_kwargs: {data_files: {test: " + str(tasks / "data.jsonl") + "}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: '{{text}}'\ndoc_to_target: '{{answer}}'\n"
        "process_results: !function broken.grade\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
        "generation_kwargs: {max_gen_toks: 2, until: ['x']}\n")
    train(tmp_path / "run", 1, callback(world, Suite(["broken"], folder=str(tasks)), Occasions(turns=("end",))))
    failure = files(tmp_path / "run")[1]["failures"]["broken"]
    assert failure["status"] == "error"
    assert "ZeroDivisionError" in failure["reason"]
    assert "in grade" in failure["traceback"]


def test_time_that_is_over_counts_against_the_family_it_was_over_in(world, suite, tmp_path):
    one = callback(world, suite, Occasions(every_steps=1, turns=()), Effort(seconds=1e-6))
    train(tmp_path, 4, one)
    found = files(tmp_path)
    assert [statuses(each)["hellaswag"] for each in found.values()] == ["timeout"] * 3 + ["disabled"]
    assert one.failures == {"hellaswag": 3, MMLU[0]: 1}


def test_scores_that_are_not_finite_are_flagged_and_not_averaged(world, suite, tmp_path):
    train(tmp_path, 2, callback(world, suite, Occasions(every_steps=1, turns=())), module=Project(broken_at=1))
    found = files(tmp_path)
    assert statuses(found[1]) == {}
    assert statuses(found[2]) == {"hellaswag": "nonfinite", MMLU[0]: "nonfinite"}
    assert (found[2]["average"], found[2]["families"]) == (None, {})


def test_a_result_that_cannot_be_written_does_not_end_the_run(world, suite, tmp_path, caplog):
    (tmp_path / "evals").write_text("in the way")
    assert len(train(tmp_path, 2, callback(world, suite, Occasions(every_steps=1)))) == 2
    assert any("could not be written" in record.getMessage() for record in caplog.records)


def test_programs_are_not_run_where_no_sandbox_works(world, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_cpt.sandbox.pool.STRONG", ())
    suite = Suite(["humaneval", "hellaswag"], data=str(world[0]), limit=1, max_gen_toks={"humaneval": 4})
    one = callback(world, suite, Occasions(turns=("end",)))
    one.sandbox.open_one = lambda: (_ for _ in ()).throw(RuntimeError("no way here to keep a candidate apart"))
    train(tmp_path, 1, one)
    found = files(tmp_path)[1]
    assert statuses(found) == {"humaneval": "unavailable"}
    assert "no way here to keep a candidate apart" in found["failures"]["humaneval"]["reason"]
    assert "hellaswag" in found["families"]


# What it tells ---------------------------------------------------------------------------------------------


def test_all_four_families_are_scored_and_told(world, tmp_path, caplog):
    suite = Suite(["mmlu_anatomy", "hellaswag", "humaneval", "mgsm"], data=str(world[0]), limit=2, max_gen_toks=ROOM)
    logger = pl.loggers.CSVLogger(tmp_path / "csv")
    one = callback(world, suite, Occasions(every_steps=1, turns=("start",)))
    torch.manual_seed(1)
    trainer = make_trainer(tmp_path, one, max_steps=1, logger=logger)
    with caplog.at_level(logging.INFO):
        trainer.fit(Project(), loader(1))
    first, second = files(tmp_path).values()
    assert set(second["families"]) == {"mmlu_anatomy", "hellaswag", "humaneval", "mgsm"}
    for name, family in second["families"].items():
        assert len(family["hits"]) == len(family["documents"]) == family["items"], name
        assert family["bits_per_byte"] > 0, name
        assert family["data"], name
    mgsm = second["families"]["mgsm"]
    assert (mgsm["metric"], mgsm["shots"], mgsm["max_new_tokens"]) == (
        "exact_match_flexible_extract", dict.fromkeys(mgsm["shots"], 8), 8)
    assert {cluster.partition("/")[0] for cluster in mgsm["clusters"]} == {"mgsm"}
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert {"eval/hellaswag/acc_norm", "eval/humaneval/pass_at_1", "eval/mgsm/bits_per_byte"} <= logged.keys()
    assert logged["eval/hellaswag/acc_norm"] == second["families"]["hellaswag"]["score"]
    lines = [record.getMessage() for record in caplog.records if "hellaswag" in record.getMessage()]
    assert any("(+" in line or "(-" in line or "(\u2212" in line or "(0" in line for line in lines), lines
    assert first["step"] == 0


# Stopping and going on -------------------------------------------------------------------------------------


def test_the_step_is_saved_before_it_is_evaluated(world, suite, tmp_path):
    class Order(EvalCallback):
        saved = ()

        def evaluate(self, trainer, pl_module, reasons):
            self.saved = (*self.saved, sorted(path.name for path in (tmp_path / "checkpoints").glob("step*")))
            super().evaluate(trainer, pl_module, reasons)

    one = Order(suite, Occasions(every_steps=2, turns=("end",)), Effort(token_budget=512), "net", world[1])
    train(tmp_path, 3, one, RunCheckpointCallback(every_n_steps=100))
    assert one.saved == (["step-00000002.ckpt"], ["step-00000002.ckpt", "step-00000003.ckpt"])


def test_a_run_killed_in_its_evaluation_asks_again_and_one_killed_after_it_does_not(world, suite, tmp_path):
    when = Occasions(every_steps=2, turns=())
    train(tmp_path, 3, callback(world, suite, when), RunCheckpointCallback(every_n_steps=100))
    checkpoint, result = tmp_path / "checkpoints" / "step-00000002.ckpt", tmp_path / "evals" / "step00000002.json"
    first = result.read_text()
    for lost in (False, True):
        if lost:
            result.unlink()
        before = result.stat().st_mtime_ns if result.exists() else None
        saving = RunCheckpointCallback(every_n_steps=100)
        trainer = make_trainer(tmp_path, callback(world, suite, when), saving, max_steps=3)
        trainer.fit(Project(), loader(3), ckpt_path=str(checkpoint), weights_only=False)
        assert (result.stat().st_mtime_ns == before) is not lost
    again = json.loads(result.read_text())
    assert again["families"]["hellaswag"]["hits"] == json.loads(first)["families"]["hellaswag"]["hits"]


def test_a_run_that_is_asked_to_stop_does_not_wait_for_the_evaluation(world, suite, tmp_path):
    stop = GracefulStopCallback()

    class Signal(EvalCallback):
        def ask(self, trainer, pl_module, reasons):
            stop.asked_by = 15
            return super().ask(trainer, pl_module, reasons)

    one = Signal(suite, Occasions(every_steps=1, turns=()), Effort(token_budget=512), "net", world[1])
    with pytest.raises(BaseException, match="stopped at step 2"):
        train(tmp_path, 4, one, stop)
    assert files(tmp_path) == {}
    assert (tmp_path / "checkpoints" / "step-00000002.ckpt").exists()


# What is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "message"), [
    ({"suite": Suite(["no_such_task"])}, "no task, group or tag no_such_task"),
    ({"suite": Suite(["mmlu"], folder="/no/such")}, "/no/such: there is no such folder"),
    ({"tokenizer": None}, "Project names no tokenizer"),
    ({"tokenizer": "/no/such"}, "no tokenizer can be read from /no/such"),
    ({"model": "head"}, "Project holds no Hugging Face model to evaluate \\(its attribute 'head'\\)"),
    ({"when": Occasions(every_tokens=100)}, "every_tokens needs a module with `tokens_seen`"),
])
def test_mistakes_are_refused_before_training(world, suite, tmp_path, settings, message):
    module = Project()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(tmp_path, 1, callback(world, **{"suite": suite, **settings}), module=module)
    assert module.losses == []


def test_a_second_callback_is_refused(world, suite, tmp_path):
    with pytest.raises(ValueError, match="two EvalCallbacks would write the same files"):
        train(tmp_path, 1, callback(world, suite), callback(world, suite))


def test_a_resumed_run_asks_again_what_had_failed(world, suite, tmp_path):
    when = Occasions(every_steps=2, turns=())
    late = Effort(seconds=1e-6)
    train(tmp_path, 2, callback(world, suite, when, late), RunCheckpointCallback(every_n_steps=100))
    assert statuses(files(tmp_path)[2])["hellaswag"] == "timeout"
    saving, checkpoint = RunCheckpointCallback(every_n_steps=100), tmp_path / "checkpoints" / "step-00000002.ckpt"
    trainer = make_trainer(tmp_path, callback(world, suite, when), saving, max_steps=3)
    trainer.fit(Project(), loader(3), ckpt_path=str(checkpoint), weights_only=False)
    assert statuses(files(tmp_path)[2]) == {}


def test_prompts_that_lose_their_beginning_are_told_once(world, tmp_path, caplog):
    class Short(Project):
        def __init__(self):
            super().__init__()
            self.net = build_model(window=64)

    suite = Suite(MMLU[:1], data=str(world[0]), limit=1)
    train(tmp_path, 2, callback(world, suite, Occasions(every_steps=1)), module=Short())
    said = [record.getMessage() for record in caplog.records if "lose their beginning" in record.getMessage()]
    assert len(said) == 1
    assert files(tmp_path)[0]["families"][MMLU[0]]["cut"] > 0


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_under_which_a_model_cannot_be_called_are_refused(strategy):
    with pytest.raises(ValueError, match=f"cannot call a model under {strategy.__name__}. Use ModelParallelStrategy"):
        refuse_strategy(object.__new__(strategy))


def test_a_fast_dev_run_asks_one_question_of_each_task(world, suite, tmp_path):
    one = callback(world, suite, Occasions())
    make_trainer(tmp_path, one, fast_dev_run=1).fit(Project(), loader(2))
    assert {step: found["families"]["hellaswag"]["items"] for step, found in files(tmp_path).items()} == {0: 1, 1: 1}


def test_a_compiled_model_is_evaluated_as_the_one_that_was_compiled(world, suite, tmp_path):
    class Compiled(Project):
        def __init__(self):
            super().__init__()
            self.net = torch.compile(self.net, backend="eager")

    for name, module in (("plain", Project()), ("compiled", Compiled())):
        train(tmp_path / name, 1, callback(world, suite, Occasions(turns=("start",))), module=module)
    scores = [files(tmp_path / name)[0]["families"]["hellaswag"]["bits"] for name in ("plain", "compiled")]
    assert scores[0] == scores[1]


def test_model_and_tokenizer_are_found_where_they_usually_are(world, tmp_path):
    class Usual(Project):
        def __init__(self):
            super().__init__()
            self.model, self.tokenizer = self.net, world[1]

    suite = Suite(["hellaswag"], data=str(world[0]), limit=1)
    train(tmp_path, 1, EvalCallback(suite, Occasions(turns=("end",))), module=Usual())
    assert "hellaswag" in files(tmp_path)[1]["families"]


def test_a_phase_may_begin_by_a_score(world, tmp_path, sources):
    build_model().save_pretrained(tmp_path / "model")
    world[1].save_pretrained(tmp_path / "tokenizer")
    asked = {"class_path": "lit_cpt.callbacks.EvalCallback", "init_args": {
        "suite": {"tasks": ["hellaswag"], "data": str(world[0]), "limit": 2}, "effort": {"token_budget": 512},
        "when": {"every_steps": 3, "turns": ["phase"]}, "tokenizer": str(tmp_path / "tokenizer")}}
    phases = [{"name": "one", "blend": {"weights": {"a": 0.5, "b": 0.5}}},
              {"name": "two", "blend": {"weights": {"a": 0.1, "b": 0.9}},
               "when": {"metric": "eval/hellaswag/ok > 0.5"}}]
    config = {"recipe": {"token_horizon": 8 * 4 * LENGTH, "phases": phases,
                         "curve": {"class_path": "Cosine", "init_args": {"eta_max": 1e-3}}},
              "model": {"pretrained": str(tmp_path / "model")},
              "data": {"sources": sources, "sequence_length": LENGTH, "global_batch": 4, "micro_batch": 4,
                       "workers": 0},
              "trainer": {"log_every_n_steps": 1, "callbacks+": [asked]}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "base", "--config", "hardware/cpu", "--config", str(tmp_path / "run.yaml"), "--run",
                 str(tmp_path / "run")]) == 0
    [phase] = [event for event in read_events(tmp_path / "run") if event["event"] == "phase"]
    assert (phase["phase"], phase["step"]) == ("two", 4)  # asked after step 3, judged at the end of step 4
    assert list(files(tmp_path / "run")) == [3, 4, 6]


def test_programs_are_scored_in_the_real_sandbox_though_one_of_its_processes_is_killed(world, tmp_path):
    try:
        Sandbox().close()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    stop, killed = threading.Event(), []

    def kill():
        """The first two sandboxes, while they score the answers."""
        while not stop.is_set() and len(killed) < 2:
            opened = one.sandbox.opened
            for process in list(opened.cells.running) if opened is not None and asking else ():
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
            time.sleep(0.001)

    asking = []

    class Asking(EvalCallback):
        def ask(self, *arguments):
            asking.append(True)
            return super().ask(*arguments)

    thread = threading.Thread(target=kill, daemon=True)
    suite = Suite(["humaneval", "hellaswag"], data=str(world[0]), limit=3, max_gen_toks={"humaneval": 8})
    one = Asking(suite, Occasions(every_steps=1, turns=()), Effort(token_budget=512), "net", world[1])
    thread.start()
    try:
        assert len(train(tmp_path, 2, one)) == 2
    finally:
        stop.set()
        thread.join()
    assert killed
    first, second = files(tmp_path).values()
    assert "hellaswag" in first["families"]
    assert "humaneval" in first["families"] or first["failures"]["humaneval"]["reason"]
    assert second["families"]["humaneval"]["items"] == 3

"""`lit-cpt plan --gpu`: whether a run fits, how long it takes, what it costs."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
import yaml
from test_architectures import SIZES

from lit_cpt.cli import main
from lit_cpt.footprint import GPUS
from lit_cpt.outlook import Budget, devices, layout_of, outlook, render_outlook
from lit_cpt.recipe import Batch

PAPER = ["plan", "--config", "base", "--config", "recipes/paper", "--config", "models/nemotron4_15b", "--config",
         "hardware/sharded", "--data.sources", "{}", "--data.sequence_length", "4096", "--data.global_batch", "1152"]
SHARDED = {"class_path": "lit_cpt.parallel.ShardedStrategy", "init_args": {
    "compute_dtype": "bfloat16", "activation_checkpointing": True, "replicas": 2}}


def settings(**trainer):
    return {"model": {"architecture": {"model_type": "llama", **SIZES}}, "data": {"micro_batch": 2},
            "trainer": {"strategy": SHARDED, "devices": 4, "num_nodes": 2, **trainer}}


def printed(capsys, *arguments):
    assert main(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_papers_run_is_told_with_memory_hours_and_cost(capsys):
    told = printed(capsys, *PAPER, "--gpu", "H100", "--price", "2.5", "--trainer.devices", "8",
                   "--trainer.num_nodes", "8")
    assert "15.63B parameters on 64 x H100: 1 x 4,096 tokens at once, 18 times a step, bfloat16, blocks recomp" in told
    assert "fits: " in told
    assert "8.92e+10 FLOPs a token; at 40% of the peak (--mfu, assumed) 284k tokens/s: 293.5 hours (12.2 days)" in told
    assert "18,782 GPU hours, 46,955 at 2.5 an hour" in told


def test_a_run_that_does_not_fit_is_told_what_would(capsys):
    told = printed(capsys, *PAPER, "--gpu", "24,100", "--trainer.devices", "8")
    assert "DOES NOT FIT: " in told
    assert "it would with " in told
    less = json.loads(printed(capsys, *PAPER, "--gpu", "80,100", "--trainer.devices", "4", "--data.micro_batch", "4",
                              "--json"))["scale"]
    assert not less["fits"]
    assert max(less["mends"].values()) <= Budget("80,100").device.usable < less["memory"]["total"]


def test_gpus_add_memory_hours_and_the_size_of_a_checkpoint_and_dates_to_the_plan(capsys):
    plain = json.loads(printed(capsys, *PAPER, "--json", "--trainer.devices", "8"))
    asked = json.loads(printed(capsys, *PAPER, "--json", "--gpu=H200", "--trainer.devices", "8", "--mfu=0.5"))
    hours = asked.pop("scale")["hours"]
    assert hours == pytest.approx(300e9 * 8.916e10 / (8 * 0.5 * 989e12) / 3600, rel=1e-3)
    assert (plain.pop("checkpoint_bytes"), asked.pop("checkpoint_bytes")) == (None, 12 * 15_628_775_424)
    when = [datetime.fromisoformat(at) for at in asked.pop("dates").values()]
    assert asked == plain
    assert (when[1] - datetime.now()).total_seconds() / 3600 == pytest.approx(hours, abs=0.1)


def test_tensor_parallelism_is_not_planned():
    options = {**SHARDED["init_args"], "tensor_parallel": 2}
    with pytest.raises(ValueError, match="--gpu does not plan tensor parallelism, and tensor_parallel is 2"):
        layout_of(settings(strategy={**SHARDED, "init_args": options}), Batch(64, 16))


def test_configs_are_read_as_fit_reads_them(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"trainer": {"strategy": {"init_args": {"replicas": 4}}}}))
    scale = json.loads(printed(capsys, *PAPER, "--config", "more.yaml", "--gpu", "H100", "--trainer.devices", "8",
                               "--json", "--trainer.strategy.activation_checkpointing", "false"))["scale"]
    assert scale["layout"] == {"ranks": 8, "replicas": 4, "compute_bytes": 2, "recompute": False, "micro_batch": 1,
                               "sequence_length": 4096, "accumulation": 144, "reduce_at_once": True,
                               "float8": False}


def test_a_layout_is_that_of_the_config():
    layout = layout_of(settings(), Batch(128, 64))
    assert (layout.ranks, layout.replicas, layout.shard, layout.compute_bytes, layout.recompute, layout.accumulation
            ) == (8, 2, 4, 2, True, 4)


@pytest.mark.parametrize(("given", "count"), [(8, 8), ("8", 8), ([0, 2], 2), ("0,2,", 2)])
def test_devices_are_counted(given, count):
    assert devices(given) == count


@pytest.mark.parametrize("given", ["auto", -1, None, "0"])
def test_as_many_as_there_are_cannot_be_planned_with(given):
    with pytest.raises(ValueError, match=f"trainer.devices is {given!r}. Give --trainer.devices N"):
        devices(given)


def test_float32_has_memory_and_no_hours():
    plain = {"class_path": SHARDED["class_path"], "init_args": {}}
    found = outlook(settings(strategy=plain), Batch(128, 64), 10**9, Budget("H100"))
    assert found.fits
    assert (found.hours, found.cost, found.tokens_per_second) == (None, None, None)


def test_float8_needs_the_memory_of_bfloat16_and_has_no_hours():
    eight = {**SHARDED, "init_args": {**SHARDED["init_args"], "compute_dtype": "float8"}}
    half, found = (outlook(settings(strategy=strategy), Batch(128, 64), 10**9, Budget("H100"))
                   for strategy in (SHARDED, eight))
    assert (found.memory, found.size) == (half.memory, half.size)
    assert (found.hours, found.cost, found.tokens_per_second) == (None, None, None)
    told = render_outlook(found, Budget("H100"))
    assert "4 times a step, bfloat16, linear layers in float8, blocks recomputed, 2 replicas" in told
    assert "time is told for bfloat16 only" in told


@pytest.mark.parametrize(("changes", "message"), [
    ({"strategy": "ddp"}, "plans memory for lit_cpt.parallel.ShardedStrategy, and trainer.strategy is 'ddp': add"),
    ({"devices": 3}, "global_batch=64 is no multiple of micro_batch=2 times 6 ranks"),
])
def test_what_cannot_be_planned_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        outlook(settings(**changes), Batch(128, 64), 10**9, Budget("H100"))


def test_a_plan_for_gpus_needs_a_model():
    with pytest.raises(ValueError, match="--gpu needs a model: give --model.pretrained or --model.architecture"):
        outlook({**settings(), "model": {}}, Batch(128, 64), 10**9, Budget("H100"))


@pytest.mark.parametrize(("given", "message"), [
    ({"gpu": "H1000"}, "--gpu H1000: choose one of A100, .*, or give its memory in GB"),
    ({"gpu": "80,x"}, "--gpu 80,x: choose one of"),
    ({"gpu": "H100", "mfu": 40.0}, "--mfu 40.0: it is a share of the GPU's peak, above 0 and at most 1"),
    ({"gpu": "H100", "price": -1.0}, "--price -1.0: the price of a GPU hour is not below 0"),
])
def test_a_budget_refuses_what_makes_no_sense(given, message):
    with pytest.raises(ValueError, match=message):
        Budget(**given)


def test_a_gpu_can_be_given_by_its_data_sheet():
    assert Budget("80,989").device == GPUS["H100"]

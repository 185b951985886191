"""Training sharded over ranks: the same run as on one, resumed by as many or others, in and out of checkpoints."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import VOCABULARY
from harness_world import build_tokenizer
from nursery import FIT, torchrun
from transformers import AutoModelForCausalLM, GenerationConfig

from lit_cpt.cli import main
from lit_cpt.losses import NextTokenLoss
from lit_cpt.parallel import ShardedStrategy, blocks_of, data_rank, mesh_of, shard
from lit_cpt.weights import build_model, load_weights, read_moments

SCRIPT = Path(__file__).parent / "projects" / "sharded.py"
MODULES = (*FIT, "lit_cpt.callbacks.eval", "transformers.models.mixtral.modeling_mixtral")
STEPS, STOP = 10, 6
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "max_position_embeddings": 32}
MODELS = {
    "llama": {"model_type": "llama", **SIZES},
    "tied": {"model_type": "llama", "tie_word_embeddings": True, **SIZES},
    "moe": {"model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
            **SIZES},
}


def launch(run, ranks, sources, model, **settings):
    """A run of `projects/sharded.py`, however it ended."""
    run.mkdir(parents=True, exist_ok=True)
    given = run / "given.json"
    given.write_text(json.dumps({"run": str(run), "sources": sources, "model": model, **settings}))
    return torchrun(SCRIPT, ranks, str(given), modules=MODULES)


def train(run, ranks, sources, model, **settings):
    """A run that finished: what it wrote."""
    ran = launch(run, ranks, sources, model, **settings)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return torch.load(run / "result.pt", weights_only=True)


def assert_equal(mine, other, within=0.0):
    """Weights and moments of two runs."""
    for part in ("weights", "moments"):
        assert mine[part].keys() == other[part].keys()
        for name, value in other[part].items():
            assert float((mine[part][name] - value).abs().max()) <= within, (part, name)


def assert_logged_alike(mine, other):
    """The last metrics of two runs, which are of an interval that holds the cut."""
    assert {"train/loss", "train/a/loss", "train/b/loss"} <= other["published"].keys()
    assert mine["published"] == pytest.approx(other["published"], rel=1e-5)


def save_tokenizer(folder):
    build_tokenizer(folder)
    return str(folder)


def exported_is(whole, checkpoint, architecture, folder):
    """What is exported of ``checkpoint`` has the weights and the logits of a run."""
    assert main(["export", "--checkpoint", checkpoint, "--output", str(folder / "exported"),
                 "--tokenizer", save_tokenizer(folder / "tokenizer")]) == 0
    there = AutoModelForCausalLM.from_pretrained(folder / "exported", dtype=torch.float32).eval()
    for name, value in there.state_dict().items():
        assert torch.equal(value, whole["weights"][name]), name
    mine, tokens = build_model(None, architecture).eval(), torch.arange(16)[None]
    mine.load_state_dict(whole["weights"])
    with torch.no_grad():
        assert torch.equal(there(tokens).logits, mine(tokens).logits)


# Settings ------------------------------------------------------------------------------------------------


def test_replicas_and_tensor_groups_must_divide_the_ranks():
    with pytest.raises(ValueError, match="replicas=3 does not divide the 8 ranks"):
        mesh_of("cpu", 8, 3)
    with pytest.raises(ValueError, match="tensor_parallel=3 does not divide the 8 ranks"):
        mesh_of("cpu", 8, tensor=3)
    with pytest.raises(ValueError, match="replicas=8 does not divide the 4 tensor groups"):
        mesh_of("cpu", 8, 8, tensor=2)


def test_ranks_of_a_tensor_group_share_one_place_in_the_data():
    def places(strategy):
        return [data_rank(SimpleNamespace(strategy=strategy, global_rank=rank, world_size=4)) for rank in range(4)]

    assert places(ShardedStrategy(tensor_parallel=2)) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert places(object()) == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_a_strategy_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="replicas=0 must be at least 1"):
        ShardedStrategy(replicas=0)
    with pytest.raises(ValueError, match="tensor_parallel=0 must be at least 1"):
        ShardedStrategy(tensor_parallel=0)
    with pytest.raises(ValueError, match="compute_dtype='float16': choose one of float32, bfloat16, float8"):
        ShardedStrategy(compute_dtype="float16")


@pytest.mark.parametrize("architecture", [
    *MODELS.values(),
    {"model_type": "gpt2", "vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0,
     "eos_token_id": 0},
    {"model_type": "gpt_neox", **SIZES}, {"model_type": "nemotron", "num_key_value_heads": 2, **SIZES},
], ids=lambda one: one["model_type"])
def test_the_blocks_of_a_model_are_found(architecture):
    assert len(blocks_of(build_model(None, architecture))) == 2


def test_a_model_without_blocks_is_refused_by_name():
    with pytest.raises(ValueError, match="Linear has no list of blocks"):
        blocks_of(torch.nn.Linear(2, 2))


def test_sharding_over_one_rank_leaves_the_names_and_the_loss(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = build_model(None, MODELS["llama"])
        names, tokens = list(model.state_dict()), torch.arange(16)[None]
        before = model(tokens).logits.detach()
        shard(model, mesh_of("cpu", 1, 1), activation_checkpointing=True)
        assert list(model.state_dict()) == [name for name, _ in model.named_parameters()] == names
        assert torch.equal(model(tokens).logits.detach(), before)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "moe"])
def test_compiled_blocks_train_alike_and_tell_of_their_routers(kind, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    found = []
    try:
        for compiled in (False, True):
            torch.manual_seed(0)
            model = build_model(None, MODELS[kind]).train()
            shard(model, mesh_of("cpu", 1, 1), compile=compiled)
            assert all((block._compiled_call_impl is not None) is compiled for block in blocks_of(model))
            loss_of = NextTokenLoss(model, router_loss=0.1 * (kind == "moe"))
            optimizer, losses, loads = torch.optim.AdamW(model.parameters(), lr=1e-2), [], []
            for seed in range(3):
                loss = loss_of(torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(seed)))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
                loads += loss_of.routing.noted["router/loads"].tolist() if loss_of.routing else []
            found.append((losses, loads, [weight.full_tensor().detach() for weight in model.parameters()]))
    finally:
        torch.distributed.destroy_process_group()
    (losses, loads, weights), (again, loads_again, weights_again) = found
    assert again == pytest.approx(losses, abs=1e-5)
    assert loads_again == loads
    assert (len(loads) > 0) is (kind == "moe")
    for mine, theirs in zip(weights_again, weights, strict=True):
        assert float((mine - theirs).abs().max()) <= 1e-5


# Runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(sources, tmp_path_factory):
    """By model: the folder and the outcome of a whole run on two ranks, made once."""

    @functools.cache
    def whole(name):
        folder = tmp_path_factory.mktemp(name)
        return folder, train(folder / "whole", 2, sources, {"architecture": MODELS[name]})

    return whole


@pytest.fixture(scope="module")
def plain(runs):
    """A whole run of a Llama on two ranks."""
    return runs("llama")[1]


@pytest.fixture(scope="module", params=list(MODELS))
def cut(request, sources, runs):
    """For each model: a whole run on two ranks, one cut after STOP steps, and their folder."""
    (folder, whole), model = runs(request.param), {"architecture": MODELS[request.param]}
    train(folder / "cut", 2, sources, model, stop=STOP)
    return folder, model, whole


def newest(run):
    return str((run / "checkpoints" / "last.ckpt").resolve())


@pytest.mark.slow
def test_a_resumed_run_is_the_whole_one_to_the_bit(cut, sources):
    folder, model, whole = cut
    resumed = train(folder / "again", 2, sources, model, resume=newest(folder / "cut"))
    assert resumed["losses"] == whole["losses"][-len(resumed["losses"]):]
    assert len(resumed["losses"]) == 2 * (STEPS - STOP)  # micro-batches
    assert_equal(resumed, whole)
    assert_logged_alike(resumed, whole)


@pytest.mark.slow
def test_one_rank_goes_on_where_two_were(cut, sources):
    folder, model, whole = cut
    resumed = train(folder / "alone", 1, sources, model, resume=newest(folder / "cut"))
    assert_equal(resumed, whole, within=1e-6)
    assert_logged_alike(resumed, whole)


@pytest.fixture(scope="module")
def split(cut, sources):
    """A whole run of two ranks that compute each layer together, the loss in chunks, saved after STOP steps too."""
    folder, model, _ = cut
    return folder / "split", train(folder / "split", 2, sources, model, strategy={"tensor_parallel": 2},
                                   small_logits=0, checkpoints={"every_n_steps": STOP})


only_llama = pytest.mark.parametrize("cut", ["llama"], indirect=True)


@pytest.mark.slow
@only_llama
def test_a_tensor_group_trains_as_ranks_that_each_hold_all_layers(cut, split):
    whole, (_, tensor) = cut[2], split
    losses, others = (torch.tensor(one["losses"]).view(STEPS, -1).mean(1) for one in (tensor, whole))
    assert losses.tolist() == pytest.approx(others.tolist(), abs=1e-6)
    assert len(tensor["norms"]) == STEPS
    assert tensor["norms"] == pytest.approx(whole["norms"], abs=2e-6)
    assert tensor["asking"] == 1
    assert_equal(tensor, whole, within=1e-5)  # AdamW steps far where a gradient is all but rounding


@pytest.mark.slow
@only_llama
def test_one_rank_goes_on_where_a_tensor_group_was(split, sources, tmp_path):
    run, whole = split
    model = {"architecture": MODELS["llama"]}
    resumed = train(tmp_path / "alone", 1, sources, model, resume=str(run / "checkpoints" / f"step-{STOP:08d}.ckpt"))
    assert_equal(resumed, whole, within=1e-6)


@pytest.mark.slow
@only_llama
def test_tensor_groups_that_shard_go_on_where_two_ranks_were(cut, sources, tmp_path):
    folder, model, whole = cut
    resumed = train(tmp_path / "four", 4, sources, model, strategy={"tensor_parallel": 2},
                    resume=newest(folder / "cut"))
    assert resumed["asking"] == 2
    assert resumed["losses"] == pytest.approx(whole["losses"][-len(resumed["losses"]):], abs=1e-6)
    assert_equal(resumed, whole, within=1e-6)


@pytest.mark.slow
@only_llama
def test_the_checkpoint_of_a_tensor_group_is_exported_on_one(split, tmp_path):
    run, whole = split
    exported_is(whole, newest(run), MODELS["llama"], tmp_path)


@pytest.mark.slow
def test_two_ranks_go_on_where_four_were_that_went_on_from_one(plain, sources, tmp_path):
    model = {"architecture": MODELS["llama"]}
    train(tmp_path / "one", 1, sources, model, stop=3)
    train(tmp_path / "four", 4, sources, model, stop=6, resume=newest(tmp_path / "one"))
    assert_equal(train(tmp_path / "two", 2, sources, model, resume=newest(tmp_path / "four")), plain, within=1e-6)


@pytest.mark.slow
def test_a_checkpoint_holds_its_step_though_training_went_on_and_a_kill_leaves_the_one_before(plain, sources, tmp_path):
    model = {"architecture": MODELS["llama"]}
    slow = {"disk_seconds": 2.0, "checkpoints": {"every_n_steps": 3, "keep": 1}}
    killed = launch(tmp_path / "killed", 2, sources, model, kill=8, **slow)  # 6 is being written, 3 was
    assert killed.returncode != 0
    folder = tmp_path / "killed" / "checkpoints"
    assert (folder / ".step-00000006.ckpt.writing").is_dir()
    assert sorted(path.name for path in folder.glob("*.ckpt")) == ["last.ckpt", "step-00000003.ckpt"]
    resumed = train(tmp_path / "killed", 2, sources, model, resume=newest(tmp_path / "killed"), **slow)
    assert resumed["losses"] == plain["losses"][-len(resumed["losses"]):]
    assert_equal(resumed, plain)
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step-00000010.ckpt"]


@pytest.mark.slow
def test_the_checkpoint_of_several_ranks_is_exported_on_one(cut, tmp_path):
    folder, model, whole = cut
    exported_is(whole, newest(folder / "whole"), model["architecture"], tmp_path)


@pytest.mark.slow
def test_moments_of_several_ranks_are_read_by_one(cut):
    folder, model, whole = cut
    alone = build_model(None, model["architecture"])
    load_weights(alone, newest(folder / "whole"))
    moments = read_moments(newest(folder / "whole"), alone)
    for name, one in moments.items():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(one[key], whole["moments"][f"{name}.{key}"]), (name, key)


@pytest.mark.slow
def test_a_run_starts_with_weights_and_moments_of_another_whatever_the_ranks(cut, sources, tmp_path):
    folder, _, _ = cut
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    pretrained = str(tmp_path / "pretrained")
    main(["export", "--checkpoint", newest(folder / "whole"), "--output", pretrained, "--tokenizer", tokenizer])
    for file in Path(pretrained).glob("tokenizer*"):
        file.unlink()  # the sources of these tests know no tokenizer
    GenerationConfig(do_sample=True, temperature=0.7).save_pretrained(pretrained)
    warm = {"pretrained": pretrained, "optimizer_state": newest(folder / "whole")}
    again = {"activation_checkpointing": True}  # which must leave the names by which moments are found
    two, one, cold = (train(tmp_path / name, ranks, sources, model, stop=2, strategy=again) for name, ranks, model in (
        ("two", 2, warm), ("one", 1, warm), ("cold", 2, {"pretrained": pretrained})))
    assert_equal(two, one, within=1e-6)
    saved = torch.load(Path(newest(tmp_path / "two")) / "meta.pt", weights_only=True)["lit_cpt"]
    assert saved["generation"]["temperature"] == 0.7
    assert max(float((two["weights"][name] - value).abs().max()) for name, value in cold["weights"].items()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [
    {"activation_checkpointing": True}, {"reduce_every_micro_batch": False}, {"replicas": 2},
    {"distributed_checkpoints": False},
], ids=lambda one: next(iter(one)))
def test_how_it_is_computed_changes_nothing(strategy, plain, sources, tmp_path):
    other = train(tmp_path / "other", 2, sources, {"architecture": MODELS["llama"]}, strategy=strategy)
    assert other["norms"] == pytest.approx(plain["norms"], rel=1e-5)
    assert_equal(other, plain, within=1e-6)


@pytest.mark.slow
def test_bfloat16_compute_keeps_fp32_weights_and_comes_close(plain, sources, tmp_path):
    assert_close_in("bfloat16", plain, sources, tmp_path)


@pytest.mark.slow
def test_float8_compute_keeps_fp32_weights_and_comes_close(plain, sources, tmp_path):
    pytest.importorskip("torchao")
    assert_close_in("float8", plain, sources, tmp_path)


def assert_close_in(dtype, plain, sources, folder):
    """A run that computes in ``dtype`` has other losses, near by, and weights of the same names in fp32."""
    ran = train(folder / "run", 2, sources, {"architecture": MODELS["llama"]}, strategy={"compute_dtype": dtype})
    assert {value.dtype for value in ran["weights"].values()} == {torch.float32}
    assert ran["losses"] != plain["losses"]
    assert ran["losses"] == pytest.approx(plain["losses"], abs=0.05)
    assert ran["weights"].keys() == plain["weights"].keys()

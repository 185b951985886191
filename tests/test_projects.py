"""Six complete projects that use little or nothing of lit_cpt but the switch, each run as its user would run it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import BLOCKS_PER_CHUNK, LENGTH, chunk_sizes, name_of
from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader

from lit_cpt.blends import BlendHistory
from lit_cpt.orders import SourceOrder

PROJECTS = Path(__file__).parent / "projects"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def start(project, *arguments):
    """The project's process."""
    return subprocess.Popen([sys.executable, str(PROJECTS / project), *map(str, arguments)], env=ENVIRONMENT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(project, folder, *arguments):
    """Run a project to its end; returns what it trained on, batch by batch, and what it said."""
    process = start(project, *arguments)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return seen(folder), said


def seen(folder):
    return [json.loads(line) for line in (folder / "seen.jsonl").read_text().splitlines()]


def names(batches):
    """(source, row) of every block of token batches."""
    return [name_of(torch.tensor(block)) for batch in batches for block in batch]


def final(folder):
    return torch.load(folder / "final.pt")


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def live_switch(sources, old, new, switch, batches, seed=42, shuffle=False):
    """What litdata's live iterator yields when its weights are changed after exactly ``switch`` batches."""
    datasets = [StreamingDataset(sources[name], item_loader=TokensLoader(block_size=LENGTH + 1), shuffle=shuffle)
                for name in ("a", "b")]
    dataset = CombinedStreamingDataset(datasets, seed=seed, weights=old, iterate_over_all=False)
    found = []
    for number, batch in enumerate(StreamingDataLoader(dataset, batch_size=4), 1):
        found += names([batch.tolist()])
        if number == switch:
            dataset._iterator._weights = list(new)
        if number == batches:
            return found
    raise AssertionError("the epoch was too short")


@pytest.mark.slow
def test_a_stock_loader_with_one_worker_switches_and_resumes_exactly(sources, tmp_path):
    data = [sources["a"], sources["b"], "--workers", 1]
    batches, said = run("stock_pair.py", tmp_path / "whole", *data, "--run", tmp_path / "whole")
    ideal = live_switch(sources, [0.6, 0.4], [0.1, 0.9], 12, 20, 7, shuffle=True)
    assert names(batches) == ideal
    assert said.count("the train loader is litdata's own") == 1
    rest, _ = run("stock_pair.py", tmp_path / "rest", *data, "--run", tmp_path / "rest", "--ckpt_path",
                  tmp_path / "whole" / "ckpt" / "step=12.ckpt")
    assert names(rest) == ideal[12 * 4 :]
    assert same(final(tmp_path / "rest"), final(tmp_path / "whole"))


@pytest.mark.slow
def test_a_stock_loader_with_two_workers_switches_at_the_batch_and_warns(sources, tmp_path):
    batches, said = run("stock_pair.py", tmp_path, sources["a"], sources["b"], "--workers", 2, "--run", tmp_path)
    assert len(batches) == 20
    assert "with num_workers=2 a switch and a resume may repeat or lose samples" in said
    assert "Cure: train on lit_cpt.stream.blended(loader, total_batches=...)" in said


def points(switch):
    """What the sampler of the project draws if its weights change after exactly ``switch`` batches."""
    generator, upcoming, drawn = random.Random(3), [0, 1], []
    for place in range(20 * 4):
        [kind] = generator.choices([0, 1], [0.8, 0.2] if place < switch * 4 else [0.1, 0.9])
        drawn.append(upcoming[kind])
        upcoming[kind] += 2
    return [drawn[place : place + 4] for place in range(0, 80, 4)]


@pytest.mark.slow
def test_a_weighted_sampler_with_set_weights_switches_and_resumes_exactly(tmp_path):
    batches, said = run("weighted_sampler.py", tmp_path / "whole", "--run", tmp_path / "whole", "--workers", 2)
    assert batches == points(15)  # the cosine is at a fifth of 0.1 when 15 of its 20 steps are made
    assert "dropped" not in said
    rest, _ = run("weighted_sampler.py", tmp_path / "rest", "--run", tmp_path / "rest", "--workers", 2, "--ckpt_path",
                  tmp_path / "whole" / "ckpt" / "step=8.ckpt")
    assert rest == points(15)[8:]
    assert same(final(tmp_path / "rest"), final(tmp_path / "whole"))


@pytest.mark.slow
def test_manual_optimization_with_two_groups_switches_after_the_step_of_the_rate(sources, tmp_path):
    data = [sources["a"], sources["b"]]
    batches, _ = run("by_hand.py", tmp_path / "whole", *data, "--run", tmp_path / "whole")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=13)
    etas = []
    for _ in range(12):
        optimizer.step()
        schedule.step()
        etas.append(optimizer.param_groups[0]["lr"])
    switch = next(step for step, eta in enumerate(etas, 1) if step > 4 and eta <= 0.2e-2)
    assert {source for source, _ in names(batches[: switch * 3])} == {0}
    assert {source for source, _ in names(batches[switch * 3 :])} == {1}
    assert names(batches) == live_switch(sources, [1.0, 0.0], [0.0, 1.0], switch * 3, 36)
    rest, _ = run("by_hand.py", tmp_path / "rest", *data, "--run", tmp_path / "rest", "--ckpt_path",
                  tmp_path / "whole" / "ckpt" / "step=6.ckpt")
    assert rest == batches[18:]
    assert same(final(tmp_path / "rest"), final(tmp_path / "whole"))


@pytest.mark.slow
def test_a_plateau_of_epochs_switches_with_the_first_batch_of_the_next_epoch(tmp_path):
    batches, _ = run("plateau.py", tmp_path, "--run", tmp_path, "--workers", 2)
    heads = [sum(batch) for batch in batches]
    assert heads == [0] * 18 + [4] * 12  # the rate falls after the third epoch of six


def ideal_stream(switch, count):
    """(source, row) of the blended stream by the pure functions alone: web is source 0, code is source 1."""
    history = BlendHistory(("web", "code"), {"web": 0.6, "code": 0.4}, 7)
    history.plan(0, [(0, {"web": 0.6, "code": 0.4}), (switch, {"web": 0.1, "code": 0.9})])
    orders = [SourceOrder(name, chunk_sizes({"web": 400, "code": 150}[name]), 7) for name in history.sources]
    stream = []
    for source, draw in zip(*history.draws(0, count, history.counts(0)), strict=True):
        chunk, block = orders[source].locate(int(draw))
        stream.append((1 - int(source), chunk * BLOCKS_PER_CHUNK + block))
    return stream


@pytest.mark.slow
def test_a_stock_project_made_exact_survives_a_kill_with_two_workers_and_accumulation(sources, tmp_path):
    data, batches_before = [sources["a"], sources["b"]], 140  # of 180; the switch comes after 144
    whole, _ = run("made_exact.py", tmp_path / "whole", *data, "--run", tmp_path / "whole")
    ideal = ideal_stream(48 * 12, 60 * 12)
    assert names(whole) == ideal
    process = start("made_exact.py", *data, "--run", tmp_path / "killed")
    while process.poll() is None and len(lines(tmp_path / "killed")) < batches_before:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (tmp_path / "killed" / "seen.jsonl").unlink()
    rest, _ = run("made_exact.py", tmp_path / "killed", *data, "--run", tmp_path / "killed", "--resume")
    assert 0 < len(rest) <= 180 - batches_before + 3 * 3
    assert names(rest) == ideal[-len(rest) * 4 :]
    assert same(final(tmp_path / "killed"), final(tmp_path / "whole"))


def lines(folder):
    """What a run's diary holds by now."""
    diary = folder / "seen.jsonl"
    return diary.read_text().splitlines() if diary.exists() else []


@pytest.mark.slow
def test_a_lightning_cli_project_switches_by_a_metric(sources, tmp_path):
    folders = json.dumps({"web": sources["a"], "qa": sources["b"]})
    batches, said = run("cli/main.py", tmp_path, "fit", "--config", PROJECTS / "cli" / "config.yaml", "--data.folders",
                        folders, "--trainer.default_root_dir", tmp_path)
    drawn = [source for source, _ in names(batches)]
    assert set(drawn[:48]) == {0}
    assert 30 <= sum(drawn[48:]) <= 44  # 0.8 of 48
    assert len(set(names(batches))) == 96
    assert "litdata's own" not in said


def ranks(folder):
    """(source, row) of every block, rank by rank and batch by batch."""
    diaries = [(folder / f"seen{rank}.jsonl").read_text().splitlines() for rank in range(2)]
    return [[names([json.loads(line)]) for line in diary] for diary in diaries]


def run_ranks(folder, *arguments):
    process = start("two_ranks.py", *arguments, "--run", folder)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return ranks(folder), said


@pytest.mark.slow
def test_two_ranks_switch_together_by_a_metric_that_one_of_them_logs(sources, tmp_path):
    data = [sources["a"], sources["b"]]
    (first, second), _ = run_ranks(tmp_path, *data, "--exact")
    history = BlendHistory(("a", "b"), {"a": 1.0}, 7)
    history.plan(0, [(0, {"a": 1.0}), (8 * 4, {"a": 0.25, "b": 0.75})])
    chosen = history.choose(0, 16 * 4).reshape(16, 2, 2).tolist()
    assert [[[source for source, _ in batch] for batch in pair] for pair in zip(first, second, strict=True)] == chosen
    every = [block for batch in [*first, *second] for block in batch]
    assert len(set(every)) == 64


@pytest.mark.slow
def test_two_ranks_of_a_stock_loader_switch_together_share_nothing_and_resume(sources, tmp_path):
    data = [sources["a"], sources["b"]]
    (first, second), said = run_ranks(tmp_path / "whole", *data)
    assert "all 2 ranks draw the same sequence of sources" in said
    for diary in (first, second):
        assert len(diary) == 16
        assert {source for batch in diary[:8] for source, _ in batch} == {0}
        assert sum(source for batch in diary[8:] for source, _ in batch) > 8
    every = [block for batch in [*first, *second] for block in batch]
    assert len(set(every)) == 64
    (one, two), _ = run_ranks(tmp_path / "rest", *data, "--ckpt_path", tmp_path / "whole" / "ckpt" / "step=10.ckpt")
    assert (one, two) == (first[10:], second[10:])

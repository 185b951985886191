from __future__ import annotations

import logging
import random

import lightning.pytorch as pl
import pytest
import torch
from conftest import LENGTH, VOCABULARY, SaveAt, fit, ideal_stream, name_of
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader
from litdata.streaming import Cache
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler

from lit_cpt.callbacks import PhaseSwitchCallback
from lit_cpt.stream import BlendedDataLoader, BlendedStreamingDataset, blended

OLD, NEW, STEPS, SWITCH = [0.6, 0.4], [0.1, 0.9], 20, 12
BATCH = 4


class Bigrams(pl.LightningModule):
    """Somebody's module: a rate that falls to a fifth at step 12."""

    broken_at = -1

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(VOCABULARY, VOCABULARY)

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == self.broken_at:
            raise RuntimeError("the disk is full")
        return F.cross_entropy(self.table(batch[:, :-1].long()).flatten(0, 1), batch[:, 1:].long().flatten())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < SWITCH else 0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Data(pl.LightningDataModule):
    """Whatever loader it is given the recipe of."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def train_dataloader(self):
        return self.make()


def stock_dataset(sources, weights=OLD, **settings):
    datasets = [StreamingDataset(sources[name], item_loader=TokensLoader(block_size=LENGTH + 1), shuffle=True)
                for name in ("a", "b")]
    return CombinedStreamingDataset(datasets, seed=7, weights=weights,
                                    **{"iterate_over_all": False, **settings})


def stock_loader(sources, workers=0, weights=OLD, **settings):
    return StreamingDataLoader(stock_dataset(sources, weights), batch_size=BATCH, num_workers=workers, **settings)


def train(make, folder, *callbacks, resume=None, module=None, callback=None, weights=NEW, **settings):
    """Train; returns what was trained on, and the module."""
    module = module or Bigrams()
    callback = callback or PhaseSwitchCallback(weights=weights, eta_over_eta_max=0.2, checkpoint=False)
    diary = fit(module, Data(make), folder, callback, *callbacks, resume=resume, **{"max_steps": STEPS, **settings})
    return diary.names, module


# litdata's own loader -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle(sources):
    """What the live iterator yields when its weights are changed after exactly the samples that were trained."""
    loader = stock_loader(sources)
    names = []
    for number, batch in enumerate(loader, 1):
        names += [name_of(block) for block in batch]
        if number == SWITCH:
            loader.dataset._iterator._weights = list(NEW)
        if number == STEPS:
            return names
    raise AssertionError("the epoch was too short")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_switch_of_the_stock_loader_loses_and_repeats_nothing(sources, tmp_path, oracle, workers):
    names, _ = train(lambda: stock_loader(sources, workers), tmp_path)
    assert names == oracle


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_batch_after_it_is_wholly_of_the_new_weights(sources, tmp_path, workers):
    names, _ = train(lambda: stock_loader(sources, workers, [1.0, 0.0]), tmp_path, weights=[0.0, 1.0])
    assert {source for source, _ in names[: SWITCH * BATCH]} == {0}
    assert {source for source, _ in names[SWITCH * BATCH :]} == {1}
    assert len(names) == STEPS * BATCH


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_with_the_stock_loader_resumes_at_any_step(sources, tmp_path, oracle, workers):
    steps = (5, SWITCH - 1, SWITCH, SWITCH + 1)
    _, module = train(lambda: stock_loader(sources, workers), tmp_path, SaveAt(tmp_path, *steps))
    for step in steps:
        rest, resumed = train(lambda: stock_loader(sources, workers), tmp_path, resume=tmp_path / f"step-{step}.ckpt")
        assert rest == oracle[step * BATCH :]
        assert torch.equal(resumed.table.weight, module.table.weight)


def test_a_run_that_fails_inside_a_batch_resumes_with_that_batch(sources, tmp_path, oracle):
    module = Bigrams()
    module.broken_at = SWITCH + 1
    with pytest.raises(RuntimeError, match="the disk is full"):
        train(lambda: stock_loader(sources), tmp_path, OnExceptionCheckpoint(tmp_path, "failed"), module=module)
    rest, _ = train(lambda: stock_loader(sources), tmp_path, resume=tmp_path / "failed.ckpt")
    assert rest == oracle[(SWITCH + 1) * BATCH :]


class TouchesTheEstimate(Bigrams):
    """Asks how many steps there will be, as a linear schedule does: Lightning then drops the loader's state."""

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches
        return super().configure_optimizers()


@pytest.mark.parametrize("kind", ["stock", "ours"])
def test_a_loader_state_that_lightning_drops_is_put_back(sources, tmp_path, oracle, kind):
    def make():
        return stock_loader(sources) if kind == "stock" else blended(stock_loader(sources), total_batches=STEPS)

    settings = {"max_epochs": 1, "limit_train_batches": STEPS,
                "weights": NEW if kind == "stock" else {"a": 0.1, "b": 0.9}}
    whole, _ = train(make, tmp_path, SaveAt(tmp_path, 5), module=TouchesTheEstimate(), **settings)
    rest, _ = train(make, tmp_path, resume=tmp_path / "step-5.ckpt", module=TouchesTheEstimate(), **settings)
    assert rest == whole[5 * BATCH :]


def test_an_epoch_after_the_switch_starts_the_stock_loader_anew(sources, tmp_path):
    names, _ = train(lambda: stock_loader(sources), tmp_path, max_epochs=2, limit_train_batches=16, max_steps=-1)
    assert len(names) == 2 * 16 * BATCH
    first, second = names[: 16 * BATCH], names[16 * BATCH :]
    assert len(set(first)) == len(first)
    assert len(set(second)) == len(second)
    assert sum(source for source, _ in second) > 0.75 * len(second)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_that_runs_out_ends_epochs_but_not_the_new_weights(sources, tmp_path, workers):
    def make():
        datasets = [StreamingDataset(sources[name], item_loader=TokensLoader(block_size=LENGTH + 1), shuffle=True)
                    for name in ("a", "c")]
        stock = CombinedStreamingDataset(datasets, weights=[0.5, 0.5], iterate_over_all=False)
        return StreamingDataLoader(stock, batch_size=BATCH, num_workers=workers)

    names, _ = train(make, tmp_path, weights=[0.0, 1.0], max_steps=40)
    assert {source for source, _ in names[: SWITCH * BATCH]} == {0, 2}
    assert {source for source, _ in names[SWITCH * BATCH :]} == {2}
    assert len(names) > SWITCH * BATCH + 2 * 37  # the last batch of an epoch is a short one


@pytest.mark.parametrize("kind", ["stock", "sampler", "stateless", "own"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_switch_at_the_end_of_an_epoch_holds_from_the_next_on(sources, tmp_path, kind, workers):
    makes = {"stock": lambda: stock_loader(sources, workers, [1.0, 0.0]), "own": lambda: OwnLoader([1.0, 0.0]),
             "sampler": lambda: plain_loader(workers=workers, weights=[1.0, 0.0]),
             "stateless": lambda: plain_loader(Weighted, workers, [1.0, 0.0])}
    names, _ = train(makes[kind], tmp_path, weights=[0.0, 1.0], limit_train_batches=SWITCH, max_steps=2 * SWITCH)
    assert {source for source, _ in names[: SWITCH * BATCH]} == {0}
    assert {source for source, _ in names[SWITCH * BATCH :]} == {1}
    assert len(names) == 2 * SWITCH * BATCH
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("workers", "says"), [(0, "litdata's own: the source that runs out first ends the epoch"),
                                               (2, "with num_workers=2 a switch and a resume may repeat or lose")])
def test_what_stock_parts_cannot_do_is_said_once_with_the_cure(sources, tmp_path, caplog, workers, says):
    with caplog.at_level(logging.WARNING, "lit_cpt"):
        train(lambda: stock_loader(sources, workers), tmp_path)
    [record] = [record for record in caplog.records if record.name.startswith("lit_cpt")]
    assert says in record.getMessage()
    assert "Cure: train on lit_cpt.stream.blended(loader, total_batches=...)" in record.getMessage()


@pytest.mark.parametrize(("weights", "says"), [
    ([1.0], r"weights=\[1\.0\] are 1, but the CombinedStreamingDataset has 2 datasets"),
    ({"a": 0.5, "b": 0.5}, "weights name a, b, but the datasets of litdata's .* give a list of 2 in their order")])
def test_weights_that_the_stock_dataset_cannot_take_are_refused_before_training(sources, tmp_path, weights, says):
    with pytest.raises(ValueError, match=says):
        train(lambda: stock_loader(sources), tmp_path, weights=weights)


def test_a_stock_dataset_without_weights_is_refused(sources, tmp_path):
    def make():
        return StreamingDataLoader(stock_dataset(sources, None, iterate_over_all=True), batch_size=BATCH)

    with pytest.raises(ValueError, match=r"iterate_over_all=True\) goes through all data once and has no weights"):
        train(make, tmp_path)


# The documented protocol --------------------------------------------------------------------------------------


class Blocks(Dataset):
    """Named blocks of source 0 (even indices) and 1 (odd ones)."""

    def __getitem__(self, index):
        block = torch.zeros(LENGTH + 1, dtype=torch.long)
        block[:4] = torch.tensor([index % 2, index // VOCABULARY**2, index // VOCABULARY % VOCABULARY,
                                  index % VOCABULARY])
        return block

    def __len__(self):
        return 4000


class Weighted(Sampler):
    """Draws the next index of source 0 or 1; a run of its own, without state."""

    def __init__(self, weights, total=STEPS * BATCH):
        self.weights, self.total, self.random, self.next = list(weights), total, random.Random(3), [0, 1]

    def set_weights(self, weights):
        self.weights = list(weights)

    def __len__(self):
        return self.total

    def __iter__(self):
        for _ in range(self.total):
            [source] = self.random.choices([0, 1], self.weights)
            self.next[source] += 2
            yield self.next[source] - 2


class Stateful(Weighted):
    """The same, and it can be put back."""

    def state_dict(self):
        return {"random": self.random.getstate(), "next": list(self.next)}

    def load_state_dict(self, state):
        self.random.setstate(state["random"])
        self.next = list(state["next"])


def plain_loader(kind=Stateful, workers=0, weights=OLD, **settings):
    return DataLoader(Blocks(), BATCH, sampler=kind(weights), num_workers=workers, **settings)


def drawn(switch=SWITCH, steps=STEPS):
    """What a sampler draws whose weights change after exactly the trained samples."""
    sampler = Stateful(OLD)
    indices = []
    for number, index in enumerate(sampler, 1):
        indices.append((index % 2, index))
        if number == switch * BATCH:
            sampler.set_weights(NEW)
    return indices


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("place", ["sampler", "batch_sampler"])
def test_a_sampler_that_keeps_state_switches_without_losing_or_repeating(tmp_path, workers, place):
    def make():
        if place == "sampler":
            return plain_loader(workers=workers, persistent_workers=workers > 0)
        return DataLoader(Blocks(), batch_sampler=StatefulBatches(OLD), num_workers=workers)

    assert train(make, tmp_path)[0] == drawn()


class StatefulBatches(Stateful):
    """A batch sampler: whole batches of indices."""

    def __iter__(self):
        yield from BatchSampler(super().__iter__(), BATCH, drop_last=True)

    def __len__(self):
        return self.total // BATCH


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sampler_that_keeps_state_resumes_at_any_step(tmp_path, workers):
    steps = (6, SWITCH - 1, SWITCH, SWITCH + 1)[workers:]
    train(lambda: plain_loader(workers=workers), tmp_path, SaveAt(tmp_path, *steps))
    for step in steps:
        rest, _ = train(lambda: plain_loader(workers=workers), tmp_path, resume=tmp_path / f"step-{step}.ckpt")
        assert rest == drawn()[step * BATCH :]


def test_a_stateless_sampler_switches_at_the_batch_and_says_what_it_drops(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "lit_cpt"):
        names, _ = train(lambda: plain_loader(Weighted, 2, [1.0, 0.0]), tmp_path, weights=[0.0, 1.0])
    assert {source for source, _ in names[: SWITCH * BATCH]} == {0}
    assert {source for source, _ in names[SWITCH * BATCH :]} == {1}
    assert "up to 4 batches that were drawn by the old weights are dropped untrained; give Weighted state_dict()" in (
        caplog.text)


class Mixed(IterableDataset):
    """A dataset that draws for itself, without a length: Lightning holds one batch ahead."""

    def __init__(self):
        self.weights = [1.0, 0.0]

    def set_weights(self, weights):
        self.weights = [weights["even"], weights["odd"]]

    def __iter__(self):
        blocks = Blocks()
        for index in range(0, 4000, 2):
            yield blocks[index + random.choices([0, 1], self.weights)[0]]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_with_set_weights_takes_names_and_switches_at_the_batch(tmp_path, workers):
    def make():
        return DataLoader(Mixed(), BATCH, num_workers=workers, persistent_workers=workers > 0)

    names, _ = train(make, tmp_path, weights={"even": 0.0, "odd": 1.0})
    assert {source for source, _ in names[: SWITCH * BATCH]} == {0}
    assert {source for source, _ in names[SWITCH * BATCH :]} == {1}


class OwnLoader:
    """A loader of no library, which saves its own state and has no length."""

    def __init__(self, weights=OLD):
        self.sampler = Stateful(weights, 10**6)

    def set_weights(self, weights):
        self.sampler.set_weights(weights)

    def state_dict(self):
        return self.sampler.state_dict()

    def load_state_dict(self, state):
        self.sampler.load_state_dict(state)

    def __iter__(self):
        blocks, indices = Blocks(), iter(self.sampler)
        while True:
            yield torch.stack([blocks[next(indices)] for _ in range(BATCH)])


def test_a_loader_with_state_of_its_own_switches_and_resumes_exactly(tmp_path):
    names, _ = train(OwnLoader, tmp_path, SaveAt(tmp_path, 5, SWITCH, SWITCH + 1))
    assert names == drawn()
    for step in (5, SWITCH, SWITCH + 1):
        assert train(OwnLoader, tmp_path, resume=tmp_path / f"step-{step}.ckpt")[0] == drawn()[step * BATCH :]


def test_a_loader_in_which_nothing_can_be_switched_is_refused_with_what_is_accepted(tmp_path):
    with pytest.raises(ValueError, match=r"found the train loader DataLoader over Blocks, and nothing in it .*set_we"):
        train(lambda: DataLoader(Blocks(), BATCH), tmp_path)


def test_two_train_loaders_are_refused(sources, tmp_path):
    with pytest.raises(ValueError, match="found the train loaders DataLoader, StreamingDataLoader"):
        train(lambda: [plain_loader(), stock_loader(sources)], tmp_path)


# blended() ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stock_loader_made_ours_keeps_sources_weights_and_seed(sources, tmp_path, workers):
    def make():
        return blended(stock_loader(sources, workers), total_batches=STEPS)

    ideal = ideal_stream([(0, {"a": 0.6, "b": 0.4}), (SWITCH * BATCH, {"a": 0.1, "b": 0.9})], STEPS * BATCH,
                         ("a", "b"), seed=7)
    names, _ = train(make, tmp_path, SaveAt(tmp_path, 5, SWITCH), weights={"a": 0.1, "b": 0.9})
    assert names == ideal
    for step in (5, SWITCH):
        rest, _ = train(make, tmp_path, resume=tmp_path / f"step-{step}.ckpt", weights={"a": 0.1, "b": 0.9})
        assert rest == ideal[step * BATCH :]


def test_what_a_loader_was_given_is_carried_over(sources):
    stock = stock_loader(sources, 2, collate_fn=torch.stack, prefetch_factor=3, timeout=60, pin_memory=False)
    ours = blended(stock, ["web", "code"], total_batches=9)
    assert isinstance(ours, BlendedDataLoader)
    assert (ours.batch_size, ours.num_workers, ours.prefetch_factor, ours.patience, len(ours)) == (BATCH, 2, 3, 60, 9)
    assert ours.collate_fn.collate_fn is torch.stack
    assert ours.weights == {"code": 0.4, "web": 0.6}


def test_a_dataset_alone_is_made_ours_and_unnamed_sources_are_numbered(sources):
    datasets = [StreamingDataset(sources["a"], item_loader=TokensLoader(block_size=LENGTH + 1)) for _ in range(2)]
    ours = blended(CombinedStreamingDataset(datasets, weights=[3, 1], iterate_over_all=False))
    assert isinstance(ours, BlendedStreamingDataset)
    assert ours.history.weights_at(0) == {"source0": 0.75, "source1": 0.25}
    assert (ours.shuffle, ours.history.seed) == (False, 42)


def test_datasets_of_any_item_loader_and_with_a_transform_are_made_ours(tmp_path):
    for source in range(2):
        cache = Cache(str(tmp_path / f"s{source}"), chunk_size=8)
        for row in range(30):
            cache._add_item(row, {"source": source, "row": row})
        cache.done()
        cache.merge()
    datasets = [StreamingDataset(str(tmp_path / f"s{source}"), transform=lambda item: {**item, "seen": True})
                for source in range(2)]
    combined = CombinedStreamingDataset(datasets, weights=[0.5, 0.5], iterate_over_all=False)
    loader = blended(StreamingDataLoader(combined, batch_size=5), total_batches=12)
    rows = [(int(source), int(row)) for _, batch in zip(range(12), loader, strict=False)
            for source, row, seen in zip(batch["source"], batch["row"], batch["seen"], strict=True) if seen]
    assert len(rows) == 60
    assert [row for source, row in rows if source == 0][:25] == list(range(25))


def test_a_subsampled_dataset_keeps_its_part(sources):
    datasets = [StreamingDataset(sources[name], item_loader=TokensLoader(block_size=LENGTH + 1), subsample=0.1)
                for name in ("a", "b")]
    part = {name_of(datasets[0][row]) for row in range(len(datasets[0]))}
    stock = CombinedStreamingDataset(datasets, weights=[1.0, 0.0], iterate_over_all=False)
    loader = blended(StreamingDataLoader(stock, batch_size=BATCH), total_batches=30)
    assert {name_of(block) for _, batch in zip(range(30), loader, strict=False) for block in batch} == part


@pytest.mark.parametrize(("change", "says"), [
    (lambda sources: (stock_dataset(sources, None, iterate_over_all=True), {}), r"iterate_over_all=True\) goes th"),
    (lambda sources: (stock_dataset(sources, batching_method="per_stream"), {}), "batching_method='per_stream' cannot"),
    (lambda sources: (stock_loader(sources), {}), r"blended\(loader\) needs total_batches=: Lightning reads one batch"),
    (lambda sources: (stock_loader(sources, 1, persistent_workers=True), {"total_batches": 3}),
     "persistent_workers=True cannot be taken over"),
    (lambda sources: (stock_dataset(sources), {"names": ["x"]}), r"names=\['x'\] must be 2 different names"),
    (lambda sources: (stock_dataset(sources), {"names": ["x", "x"]}), r"names=\['x', 'x'\] must be 2 different names"),
    (lambda sources: (blended(stock_dataset(sources)), {}), "given a BlendedStreamingDataset, which is exact already"),
    (lambda sources: (plain_loader(), {}), r"blended\(\) was given a DataLoader over Blocks; it takes litdata's Comb"),
    (lambda sources: (3, {}), r"blended\(\) was given a int; it takes"),
], ids=range(9))
def test_what_cannot_be_taken_over_is_refused(sources, change, says):
    stock, settings = change(sources)
    with pytest.raises(ValueError, match=says):
        blended(stock, **settings)


def test_datasets_shuffled_differently_are_refused(sources):
    stock = stock_dataset(sources)
    stock._datasets[0].shuffle = False
    with pytest.raises(ValueError, match="some of the datasets have shuffle=True and some shuffle=False"):
        blended(stock)

from __future__ import annotations

import time

import pytest
import torch
from conftest import LENGTH, SIZES, fit, ideal_stream, make_trainer, name_of, named_block, write_source

from lit_cpt.blends import Blend
from lit_cpt.data import BlendDataModule, ValidationBlocks
from lit_cpt.module import ContinuedPretraining
from lit_cpt.recipe import Phase, Recipe, Trigger
from lit_cpt.schedules import Cosine
from lit_cpt.stream import BlendedDataLoader, Remote, Staging, Stalled
from lit_cpt.weights import build_model

FIRST = {"a": 0.60, "b": 0.35, "c": 0.05}


def recipe_of(steps=4, weights=FIRST):
    return Recipe(steps * 4 * LENGTH, Cosine(1e-3), [Phase("only", Blend(weights))])


def data_of(sources, recipe=None, **settings):
    return BlendDataModule(recipe or recipe_of(), sources, **{"sequence_length": LENGTH, "global_batch": 4,
                                                              "workers": 0, **settings})


def with_tokenizer(folder):
    """A tokenizer of three words in ``folder``; returns its fingerprint."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from lit_cpt.prepare import tokenizer_fingerprint

    words = WordLevel({"<eos>": 0, "one": 1, "two": 2}, unk_token="<eos>")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="<eos>").save_pretrained(folder)
    return tokenizer_fingerprint(AutoTokenizer.from_pretrained(folder))


# What follows from the batch ---------------------------------------------------------------------------


@pytest.mark.parametrize(("micro", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_accumulation_steps_and_length_follow_from_recipe_and_batch(sources, tiny, tmp_path, micro, accumulation):
    data = data_of(sources, micro_batch=micro, validation_blocks=0)
    diary = fit(ContinuedPretraining(data.recipe, architecture=tiny), data, tmp_path)
    assert data.trainer.accumulate_grad_batches == accumulation
    assert data.trainer.max_steps == data.trainer.global_step == 4
    assert len(data.trainer.train_dataloader) == 4 * accumulation
    assert diary.names == ideal_stream([(0, FIRST)], 16)


def test_a_shorter_run_may_be_asked_for_and_a_longer_one_ends_with_the_horizon(sources, tiny, tmp_path):
    for asked, made in ((3, 3), (100, 4)):
        data = data_of(sources, validation_blocks=0, micro_batch=4)
        diary = fit(ContinuedPretraining(data.recipe, architecture=tiny), data, tmp_path, max_steps=asked)
        assert len(diary.etas) == made


def test_an_accumulation_that_contradicts_the_batch_is_refused(sources, tiny, tmp_path):
    data = data_of(sources, micro_batch=2)
    with pytest.raises(ValueError, match=r"accumulate_grad_batches=3, but global_batch and micro_batch make it 2"):
        fit(ContinuedPretraining(data.recipe, architecture=tiny), data, tmp_path, accumulate_grad_batches=3)


def test_a_batch_that_does_not_divide_is_refused_before_training(sources, tiny, tmp_path):
    data = data_of(sources, micro_batch=3)
    with pytest.raises(ValueError, match="global_batch=4 is no multiple of micro_batch x ranks = 3 x 1 = 3"):
        fit(ContinuedPretraining(data.recipe, architecture=tiny), data, tmp_path)


def test_seed_and_window_reach_the_stream(sources, tiny, tmp_path):
    data = data_of(sources, seed=7, window=2, micro_batch=4, validation_blocks=0)
    diary = fit(ContinuedPretraining(data.recipe, architecture=tiny), data, tmp_path)
    assert diary.names == ideal_stream([(0, FIRST)], 16, seed=7, window=2)


def test_only_the_sources_that_a_phase_names_are_opened(sources, tiny, tmp_path):
    data = data_of(sources, recipe_of(weights={"b": 1.0}), micro_batch=4, validation_blocks=0)
    diary = fit(ContinuedPretraining(data.recipe, architecture=tiny), data, tmp_path)
    assert data.used == {"b": sources["b"]}
    assert data.trainer.train_dataloader.dataset.names == ("b",)
    assert {source for source, _ in diary.names} == {1}
    assert isinstance(data.trainer.train_dataloader, BlendedDataLoader)


# Refusals ----------------------------------------------------------------------------------------------


def test_a_phase_that_names_a_source_without_a_folder_is_refused_with_the_cure(sources):
    with pytest.raises(ValueError, match=r"phase 'only' draws on 'qa', but data\.sources has 'a', 'b', 'c'\. "
                                         r"Add data\.sources\.qa: FOLDER"):
        data_of(sources, recipe_of(weights={"a": 0.5, "qa": 0.5}))
    with pytest.raises(ValueError, match=r"draws on 'a', but data\.sources has none"):
        data_of({})


def test_a_phase_without_a_step_at_this_batch_is_refused_at_once(sources):
    recipe = Recipe(4 * 4 * LENGTH, Cosine(1e-3), [Phase("one", Blend(FIRST)),
                                                   Phase("two", Blend({"c": 1.0}), Trigger(step=4))])
    with pytest.raises(ValueError, match="phase 'two' would run from step 4 to 4: no step at all"):
        data_of(sources, recipe)


def test_a_folder_that_is_no_source_is_refused_by_its_path(sources, tiny, tmp_path):
    data = data_of({**sources, "a": str(tmp_path / "nothing")})
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "nothing")):
        fit(ContinuedPretraining(data.recipe, architecture=tiny), data, tmp_path)


def test_sources_of_two_tokenizers_are_refused(sources, tiny, tmp_path):
    other = write_source(tmp_path / "other", 1, 20, fingerprint="e" * 64)
    data = data_of({**sources, "b": str(other)})
    with pytest.raises(ValueError, match=r"source 'b' .* fingerprint e{12}; source 'a' has f{12}"):
        fit(ContinuedPretraining(data.recipe, architecture=tiny), data, tmp_path)


@pytest.mark.parametrize("given", ["pretrained", "architecture"])
def test_a_source_of_another_tokenizer_than_the_models_is_refused(sources, tiny, tmp_path, given):
    model = tmp_path / "model"
    build_model(None, tiny).save_pretrained(model)
    fingerprint = with_tokenizer(model)
    data = data_of(sources)
    with pytest.raises(ValueError, match=rf"fingerprint f{{12}}; the model \({model}\) has {fingerprint[:12]}"):
        fit(ContinuedPretraining(data.recipe, **{given: str(model)}), data, tmp_path)


def test_a_source_of_the_models_tokenizer_is_trained_on(tiny, tmp_path):
    model = tmp_path / "model"
    build_model(None, tiny).save_pretrained(model)
    folder = write_source(tmp_path / "a", 0, 40, fingerprint=with_tokenizer(model))
    data = data_of({"a": str(folder)}, recipe_of(weights={"a": 1.0}), validation_blocks=0, micro_batch=4)
    diary = fit(ContinuedPretraining(data.recipe, pretrained=str(model)), data, tmp_path)
    assert len(diary.names) == 16


def test_a_model_folder_without_a_tokenizer_asks_nothing_of_the_sources(sources, tiny, tmp_path):
    build_model(None, tiny).save_pretrained(tmp_path / "model")
    data = data_of(sources, validation_blocks=0, micro_batch=4)
    fit(ContinuedPretraining(data.recipe, pretrained=str(tmp_path / "model")), data, tmp_path)
    assert data.model_fingerprint() == (None, "")


# Validation ----------------------------------------------------------------------------------------------


def rows_of(blocks):
    return [name_of(block) for block in blocks]


def validation_of(folder, length, count):
    staging = Staging({"x": folder}, {"x": folder}, Remote())
    return ValidationBlocks("x", folder, length, count, staging)


def test_validation_blocks_are_the_first_of_the_split_and_the_same_each_time(sources):
    blocks = validation_of(sources["b"], LENGTH, 4)
    assert rows_of(blocks) == rows_of(blocks) == [(1, 0), (1, 1), (1, 2), (1, 3)]
    assert torch.equal(next(iter(blocks)), named_block(1, 0))
    assert len(rows_of(validation_of(sources["b"], LENGTH, 256))) == 6


def test_validation_blocks_are_dealt_out_to_the_ranks(sources, monkeypatch):
    dealt = []
    for rank in (0, 1, 2):
        monkeypatch.setenv("WORLD_SIZE", "3")
        monkeypatch.setenv("GLOBAL_RANK", str(rank))
        dealt.append(rows_of(validation_of(sources["a"], LENGTH, 5)))
    assert dealt == [[(0, 0), (0, 3)], [(0, 1), (0, 4)], [(0, 2)]]


def test_a_validation_split_shorter_than_a_block_has_none(sources):
    assert rows_of(validation_of(sources["a"], 9 * 6, 5)) == []


def test_every_source_with_a_validation_split_is_validated_used_or_not(sources, tmp_path):
    bare = write_source(tmp_path / "bare", 3, 20, validation=0)
    given = {"d": str(bare), **dict(reversed(sources.items()))}
    data = data_of(given, recipe_of(weights={"a": 0.5, "d": 0.5}))
    assert data.validation_names == sorted(SIZES)
    assert [rows_of(loader.dataset)[0] for loader in data.val_dataloader()] == [(0, 0), (1, 0), (2, 0)]
    assert data_of(sources, validation_blocks=0).validation_names == []
    assert data_of(sources, validation_blocks=0).val_dataloader() == []


def test_a_data_module_sets_up_alone_for_validation(sources, tmp_path):
    data = data_of(sources)
    data.trainer = make_trainer(tmp_path)
    data.setup("validate")
    assert data.trainer.accumulate_grad_batches == 1


@pytest.mark.parametrize("stretch", [(5, 5), (-1, 3)])
def test_a_stretch_to_pass_over_that_is_none_is_refused(sources, stretch):
    with pytest.raises(ValueError, match=rf"pass_over has {stretch[0]} to {stretch[1]}: give the first global batch"):
        data_of(sources, pass_over=[stretch])


def test_a_time_that_is_none_is_refused(sources):
    with pytest.raises(ValueError, match="timeout=-1 must be at least 0, seconds; 0 waits for ever"):
        data_of(sources, timeout=-1)


def test_a_validation_whose_source_hangs_names_it(sources, monkeypatch):
    monkeypatch.setattr("lit_cpt.data.SourceReader.read", lambda *_: time.sleep(2))
    data = data_of(sources, timeout=0.3)
    with pytest.raises(Stalled, match=r"no batch came within 0.3 s: a validation waits for blocks of a\."):
        next(iter(data.val_dataloader()[0]))

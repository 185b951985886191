"""How blocks are split for an encoder–decoder: nothing is lost, every length is constant, the draw decides all."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_cpt.objectives import Draw, PrefixLM, SpanCorruption, is_encoder_decoder, segments

EOS, FIRST, V = 1, 999, 1000
T5 = SpanCorruption(FIRST, 500)  # 15 %, spans of 3
draws = st.builds(Draw, st.integers(0, 2**40), st.integers(0, 10**6), st.integers(0, 10**9))


def blocks_of(rows, length):
    return torch.arange(rows * length).view(rows, length) % 400 + 2


def put_back(read, predicted):
    """The text of which ``read`` is what was left and ``predicted`` what was cut out."""
    spans, text = {}, []
    for token in predicted:
        if token > FIRST - 500:
            spans[token] = current = []
        else:
            current.append(token)
    for token in read:
        text += spans.pop(token) if token in spans else [token]
    assert not spans
    return text


@settings(deadline=None, max_examples=80)
@given(draws | st.none(), st.integers(2, 300), st.floats(0.01, 0.99), st.floats(1, 9))
def test_spans_put_back_at_their_sentinels_give_the_text(draw, length, density, mean_span):
    one, blocks = SpanCorruption(FIRST, 500, density, mean_span), blocks_of(3, length)
    read, predicted = one.split(blocks, EOS, draw)
    tokens, spans = one.counts(length)
    assert (read.shape, predicted.shape) == ((3, length - tokens + spans + 1), (3, tokens + spans + 1))
    for row in range(3):
        assert (int(read[row, -1]), int(predicted[row, -1])) == (EOS, EOS)
        assert put_back(read[row, :-1].tolist(), predicted[row, :-1].tolist()) == blocks[row].tolist()
        sentinels = [token for token in read[row].tolist() if token > FIRST - 500]
        assert sentinels == list(range(FIRST, FIRST - spans, -1))
        assert int(read[row, 0]) == int(blocks[row, 0])  # a block begins with text, as T5's do


def test_the_counts_are_those_of_t5s_512_tokens():
    assert T5.counts(512) == (77, 26)
    read, predicted = T5.split(blocks_of(1, 512), EOS, None)
    assert (read.shape[1], predicted.shape[1]) == (462, 104)


def test_spans_are_drawn_evenly_from_all_there_are():
    seen = Counter(tuple(segments(5, 3, key).tolist()) for key in range(3000))
    assert len(seen) == 6  # all ways to cut five into three
    assert all(abs(count - 500) < 100 for count in seen.values())


def test_a_blocks_spans_depend_on_its_number_alone():
    blocks = blocks_of(4, 64)
    whole = T5.split(blocks, EOS, Draw(7, 3, 12))
    again = [T5.split(part, EOS, Draw(7, 9, first)) for part, first in ((blocks[:2], 12), (blocks[2:], 14))]
    for mine, *parts in zip(whole, *again, strict=True):
        assert torch.equal(mine, torch.cat(parts))
    other = T5.split(blocks, EOS, Draw(8, 3, 12))[0]
    assert not torch.equal(whole[0], other)
    masks = {tuple(T5.mask(64, 7, number)) for number in range(50)}
    assert len(masks) == 50


def test_a_validation_cuts_every_block_alike():
    blocks = blocks_of(1, 64).expand(3, -1)
    read, _ = T5.split(blocks, EOS, None)
    assert torch.equal(read[0], read[1])
    assert torch.equal(read[:1], T5.split(blocks[:1], EOS, None)[0])


@settings(deadline=None)
@given(draws | st.none(), st.integers(2, 300), st.floats(0, 0.5))
def test_a_prefix_and_its_rest_are_the_block(draw, length, least):
    blocks = blocks_of(2, length)
    read, predicted = PrefixLM(least).split(blocks, EOS, draw)
    assert read[:, -1].tolist() == [EOS, EOS]
    assert torch.equal(torch.cat([read[:, :-1], predicted], 1), blocks)
    assert min(read.shape[1] - 1, predicted.shape[1]) >= max(1, int(least * length))


def test_a_step_splits_all_its_blocks_at_one_place_and_steps_differ():
    def place(draw, least=0.0):
        return PrefixLM(least).split(blocks_of(1, 101), EOS, draw)[1].shape[1]

    assert place(Draw(7, 3, 0)) == place(Draw(7, 3, 64))
    places = [place(Draw(7, step, 0)) for step in range(2000)]
    assert (min(places), max(places), len(set(places))) == (2, 100, 99)
    assert abs(sum(places) / 2000 - 51) < 2
    assert {place(Draw(7, step, 0), 0.5) for step in range(50)} == {51}
    assert place(None) == 51


@pytest.mark.parametrize(("make", "says"), [
    (lambda: PrefixLM(0.6), "least=0.6 must be 0 to 0.5"),
    (lambda: SpanCorruption(98), "first_sentinel=98, sentinels=100: they count down"),
    (lambda: SpanCorruption(FIRST, 0), "sentinels=0"),
    (lambda: SpanCorruption(FIRST, density=1.0), "density=1.0, mean_span=3.0: give a share above 0"),
    (lambda: SpanCorruption(FIRST, mean_span=0.5), "mean_span=0.5"),
])
def test_settings_out_of_range_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_what_the_model_or_the_data_do_not_suit_is_refused():
    T5.check(blocks_of(2, 64), V)
    PrefixLM().check(blocks_of(2, 64), V)
    with pytest.raises(ValueError, match="first_sentinel=999 is beyond the model's vocabulary of 999"):
        T5.check(blocks_of(2, 64), 999)
    with pytest.raises(ValueError, match="a block of 2049 tokens has 102 spans, and there are only 100 sentinels"):
        SpanCorruption(FIRST).check(blocks_of(1, 2049), V)
    with pytest.raises(ValueError, match="the data holds token 998, which first_sentinel=999 makes a sentinel"):
        T5.check(torch.full((2, 64), 998), V)
    T5.check(torch.full((2, 64), 996), V)  # 10 tokens of 64 are cut out, in 3 spans: 999, 998, 997


def test_kinds_of_models_are_told_apart():
    assert is_encoder_decoder(SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True)))
    assert not is_encoder_decoder(SimpleNamespace(config=SimpleNamespace()))
    assert not is_encoder_decoder(torch.nn.Linear(2, 2))

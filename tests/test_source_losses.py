"""The loss of each source: samples dealt out by where they come from."""

from __future__ import annotations

import torch

from lit_cpt.source_losses import source_metrics, source_sums

NAMES = ("web", "code", "qa, long")


def test_losses_are_dealt_out_to_the_sources_and_one_without_samples_is_not_told():
    [(name, sums)] = source_sums(torch.tensor([1.0, 2.0, 4.0]), [2, 0, 2], NAMES).items()
    assert sums.tolist() == [[2.0, 0.0, 5.0], [1.0, 0.0, 2.0]]
    found = source_metrics({"loss": torch.ones(()), name: 2 * sums})
    assert {name: float(value) for name, value in found.items()} == {"train/web/loss": 2.0, "train/qa, long/loss": 2.5}


def test_sums_of_other_sources_are_kept_apart():
    one = source_sums(torch.ones(1), [0], ["a", "b"])
    other = source_sums(torch.ones(1), [0], ["a", "c"])
    assert one.keys() != other.keys()

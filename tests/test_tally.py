"""Sums from log to log: of whole steps, over the ranks at once, the same after a resume by any number of ranks."""

from __future__ import annotations

import torch

from lit_cpt.tally import Tally

CPU = torch.device("cpu")


def alone(vector):
    return vector


def filled(*losses):
    """A tally of steps with these losses."""
    tally = Tally()
    for loss in losses:
        tally.add({"loss": torch.tensor(loss), "loads": torch.tensor([[1.0, 2.0], [loss, 0.0]]), "passes": 1.0})
        tally.close_step()
    return tally


def plain(totals):
    return {name: value.tolist() for name, value in totals.items()}


def test_amounts_count_once_their_step_is_whole():
    tally = filled(2.0)
    tally.add({"loss": torch.tensor(3.0), "passes": 1.0})
    assert plain(tally.totals(alone, CPU)) == {"loss": 2.0, "loads": [[1.0, 2.0], [2.0, 0.0]], "passes": 1.0}
    tally.close_step()
    assert plain(tally.totals(alone, CPU)) == {"loss": 5.0, "loads": [[1.0, 2.0], [2.0, 0.0]], "passes": 2.0}
    tally.clear()
    assert tally.totals(alone, CPU) == {}


def test_all_sums_are_reduced_at_once():
    reduced = []
    totals = filled(2.0).totals(lambda vector: reduced.append(vector) or 2 * vector, CPU)
    assert [len(vector) for vector in reduced] == [6]
    assert plain(totals) == {"loss": 4.0, "loads": [[2.0, 4.0], [4.0, 0.0]], "passes": 2.0}


def test_a_restored_tally_goes_on_to_the_bit():
    losses = [float(torch.rand((), generator=torch.Generator().manual_seed(seed))) for seed in range(9)]
    tally = filled(*losses[:5])
    again = Tally()
    again.restore(tally.totals(alone, CPU), 0, CPU)
    for one in (tally, again):
        for loss in losses[5:]:
            one.add({"loss": torch.tensor(loss)})
            one.close_step()
    assert plain(again.totals(alone, CPU)) == plain(tally.totals(alone, CPU))


def test_what_was_saved_counts_once_for_any_number_of_ranks_and_begins_with_whole_steps():
    saved = filled(2.0, 3.0).totals(alone, CPU)
    ranks = [filled(9.0) for _ in range(3)]
    for rank, tally in enumerate(ranks):
        tally.add({"loss": torch.tensor(100.0)})
        tally.restore(saved, rank, CPU)
        tally.close_step()
    vectors = [torch.cat([value.flatten() for value in tally.totals(alone, CPU).values()]) for tally in ranks]
    assert ranks[1].totals(lambda _: sum(vectors), CPU)["loss"] == 5.0

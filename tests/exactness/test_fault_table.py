"""Each fault of the table ends as the table says, and two ranks come through it alike; the long form is its command."""

from __future__ import annotations

import pytest
from conftest import ran_with_mounts
from fault_table import CASES, HEAD, faults
from tabulate import tabulate


@pytest.mark.slow
def test_what_befalls_one_of_two_ranks_both_come_through_alike(tmp_path):
    if ran_with_mounts(f"{__file__}::test_what_befalls_one_of_two_ranks_both_come_through_alike"):
        return
    outcomes = faults(tmp_path, [2], forked=True)
    print(tabulate([outcome.row for outcome in outcomes], HEAD))
    assert [outcome.case for outcome in outcomes] == CASES
    assert [fault for outcome in outcomes for fault in outcome.faults] == []

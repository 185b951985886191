from __future__ import annotations

from pathlib import Path

import pytest

from lit_cpt.rollback import RolledBack, persevere


def test_a_fit_is_called_until_it_returns_each_time_from_where_it_asked():
    asked = [RolledBack(Path("step-8.ckpt"), (9, 12)), RolledBack(Path("step-4.ckpt"), (5, 6))]
    went = []

    def fit():
        if asked:
            raise asked.pop(0)

    persevere(fit, lambda *where: went.append(where))
    assert went == [(Path("step-8.ckpt"), (9, 12)), (Path("step-4.ckpt"), (5, 6))]


def test_any_other_exception_goes_through():
    def fit():
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        persevere(fit, lambda *_: None)

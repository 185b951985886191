"""Hostile programs are held: none gets out, none stays, each ends within its limit."""

from __future__ import annotations

import random

import pytest
import table

from lit_cpt.sandbox import Sandbox, SandboxUnavailable

QUICK = [program for program in table.PROGRAMS if not program.says.startswith(("timed", "killed|memory|"))]
HANDFUL = random.Random(4).sample(QUICK, 8)


@pytest.fixture(scope="module")
def strong():
    try:
        with Sandbox(table.LIMITS, workers=1) as sandbox:
            yield sandbox
    except SandboxUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("program", HANDFUL, ids=lambda program: program.name)
def test_a_hostile_program_is_held(strong, program):
    with table.bait() as lures:
        assert table.attempt(strong, program, lures).faults() == []


def test_there_are_forty_hostile_programs_and_each_has_a_name_of_its_own():
    names = [program.name for program in table.PROGRAMS]
    assert len(names) == len(set(names)) >= 40


@pytest.mark.slow
def test_every_hostile_program_is_held(strong, capsys):
    assert table.main([]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"hostile: {len(table.PROGRAMS)}/{len(table.PROGRAMS)}"


def test_the_table_sees_what_a_program_took_and_left(tmp_path):
    with table.bait() as lures:
        (lures.outside / "written").write_text("x")
        assert lures.taken() == ["wrote written"]
    verdict = table.Verdict(passed=True, reason="ok", seconds=60.0)
    outcome = table.Outcome(table.PROGRAMS[1], verdict, ["wrote written"], {"17"})
    assert outcome.faults() == ["wrote written", "left 17", "passed", "took too long", "expected 'BlockingIOError'"]

"""Programs that nobody has read: judged rightly, kept in, and without harm to the run that scores them."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_cpt.sandbox import Limits, Sandbox, SandboxUnavailable
from lit_cpt.sandbox.cells import GRACE_SECONDS
from lit_cpt.sandbox.judge import children
from lit_cpt.sandbox.kinds import HERE, STRONG
from lit_cpt.sandbox.syscalls import AUDIT, MACHINES, NUMBERS, REFUSED, refusing
from lit_cpt.sandbox.wire import Gone, Line, from_plain, pack, to_plain

ROOT = Path(__file__).parent.parent
SHORT = Limits(wall_seconds=1.0, cpu_seconds=1)
SLEEPS = ("import time\ndef f():\n    time.sleep(60)", "f()")
GOOD = ("def f(x):\n    return x + 1", "assert f(1) == 2")
BY_FILE = (  # for interpreters without our dependencies: the sandbox needs none of them
    "import sys, types; sys.modules['lit_cpt'] = types.ModuleType('lit_cpt'); "
    f"sys.modules['lit_cpt'].__path__ = [{str(Path(HERE).parent)!r}]; from lit_cpt.sandbox import Sandbox, Limits\n")


def settings_of(kind):
    """How to ask for this kind and no other."""
    return {"kinds": (), "allow_weak_sandbox": True} if kind == "weak" else {"kinds": (kind,)}


def opened(kind, limits=None, **settings):
    """A sandbox of this kind, or a skipped test with the reason."""
    try:
        return Sandbox(limits or Limits(), **settings_of(kind), **settings)
    except SandboxUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=[*STRONG, "weak"])
def sandbox(request):
    with opened(request.param) as one:
        yield one


@pytest.fixture
def strong():
    with opened("namespaces", workers=2) as one:
        yield one


@pytest.fixture
def open_folder():
    """A folder that every user may pass, as pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="lit-cpt-test-") as folder:
        os.chmod(folder, 0o755)
        yield folder


def until(claim, seconds=10.0):
    """Wait until a claim holds; whether it did."""
    deadline = time.monotonic() + seconds
    while not claim() and time.monotonic() < deadline:
        time.sleep(0.02)
    return claim()


def judges():
    """Processes here that run a judge or a candidate, which keeps its judge's command line."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"lit_cpt.sandbox.judge" in path.read_bytes():
                found.add(path.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize(("candidate", "test", "reason"), [
    (*GOOD, "ok"),
    ("def f(x):\n    return x", GOOD[1], "failed: AssertionError"),
    ("def f(x) return x", GOOD[1], "failed: SyntaxError: expected ':' (<candidate>, line 1)"),
    ("def g(x):\n    return x + 1", GOOD[1], "failed: NameError: name 'f' is not defined"),
    ("def f(x):\n    raise KeyError(x)", GOOD[1], "failed: KeyError: '1'"),
    ("import os\ndef f(x):\n    os._exit(0)", GOOD[1], "left early with status 0"),
    ("import os\ndef f(x):\n    os.abort()", GOOD[1], "killed: SIGABRT"),
    ("def f(x):\n    return bytearray(2**40)", GOOD[1], "killed: memory"),
    ("def f(x):\n    return object()", GOOD[1],
     "failed: TypeError: a object is not plain data and cannot cross between tests and candidate"),
])
def test_a_program_is_judged(sandbox, candidate, test, reason):
    verdict = sandbox.run(candidate, test)
    assert (verdict.reason, verdict.passed) == (reason, reason == "ok")


def test_a_program_that_does_not_end_is_ended(sandbox):
    with opened(sandbox.kind, dataclasses.replace(SHORT, cpu_seconds=4)) as short:
        verdict = short.run(*SLEEPS)
    assert verdict.reason == "timed out"
    assert verdict.seconds < SHORT.wall_seconds + GRACE_SECONDS


def test_tests_that_do_not_end_are_ended(sandbox):
    with opened(sandbox.kind, SHORT) as short:
        verdict = short.run(GOOD[0], "while True: pass")
    assert verdict.reason == "timed out"
    assert verdict.seconds < SHORT.wall_seconds + GRACE_SECONDS


def test_every_kind_stands_its_preflight(sandbox):
    assert sandbox.preflight() is None


def test_preflight_says_what_is_wrong(strong, monkeypatch):
    monkeypatch.setattr("lit_cpt.sandbox.pool.ESCAPE", "def escapes():\n    return ['reads the future']")
    assert strong.preflight() == "a program got out: failed: AssertionError: ['reads the future']"
    monkeypatch.setattr("lit_cpt.sandbox.pool.BAD", GOOD)
    assert strong.preflight() == "a wrong program was not found out: ok"
    monkeypatch.setattr("lit_cpt.sandbox.pool.GOOD", SLEEPS[:1] + GOOD[1:])
    assert strong.preflight().startswith("a correct program did not pass: failed: TypeError")


def test_tests_may_use_the_candidates_other_names_and_their_own_imports(strong):
    candidate = """
import math
LIMIT = (3, 4)
def helper(x):
    return x * 2
def f(x, *, more=0):
    return helper(x) + more
"""
    test = "import random\nassert f(1, more=LIMIT[1]) == helper(3) == 6\nassert math.floor(2.5) == 2 and random"
    assert strong.run(candidate, test).reason == "ok"


def test_an_error_of_the_candidate_is_an_error_in_the_tests(strong):
    test = "try:\n    f()\n    raise SystemExit\nexcept ValueError as error:\n    assert str(error) == 'wrong'"
    assert strong.run("def f():\n    raise ValueError('wrong')", test).reason == "ok"


def test_a_test_that_swallows_every_error_passes_no_program_that_left(strong):
    swallows = "try:\n    f(1)\nexcept BaseException:\n    pass"
    assert strong.run("import os\ndef f(x):\n    os._exit(0)", swallows).reason == "left early with status 0"


def test_the_prompt_is_the_benchmarks_and_its_entry_point_the_candidates(strong):
    prompt = "def helper(x):\n    return -x\ndef f(x):\n    '''Double it.'''\n"
    told = {"test": "assert helper(f(2)) == -4", "prompt": prompt, "entry_point": "f"}
    assert strong.run(prompt + "    return 2 * x", **told).reason == "ok"
    assert strong.run("helper = lambda x: -4\ndef f(x): return 7", **told).reason == "failed: AssertionError"
    assert strong.run("pass", **told).reason == "failed: NameError: name 'f' is not defined"


def test_the_same_program_has_the_same_verdict_whatever_the_hash_seed(strong):
    candidate = "def f():\n    return list({'a', 'b', 'c', 'd', 'e', 'f'})"
    assert len({strong.run(candidate, "raise ValueError(f())").reason for _ in range(3)}) == 1


def test_a_pool_scores_while_the_caller_goes_on(strong):
    naps = "import time\ndef f(x):\n    time.sleep(1)\n    return x + 1"
    futures = [strong.submit(naps, GOOD[1]) for _ in range(4)]
    assert not any(future.done() for future in futures)
    assert all(future.result().passed for future in futures)


def test_threads_may_share_a_sandbox(strong):
    reasons = []
    threads = [threading.Thread(target=lambda: reasons.append(strong.run(*GOOD).reason)) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert reasons == ["ok"] * 4


@pytest.mark.parametrize("victim", ["the one we started", "the judge", "the candidate"])
def test_a_worker_killed_while_it_scores_is_a_verdict_and_the_rest_go_on(sandbox, victim):
    future = sandbox.submit(*SLEEPS)
    generations = 2 if sandbox.kind == "weak" else 3  # with the one that waits outside
    assert until(lambda: len(family(sandbox)) == generations)
    processes = family(sandbox)
    time.sleep(0.2)  # until it sleeps in its function
    os.kill(processes[{"the one we started": 0, "the judge": -2, "the candidate": -1}[victim]], signal.SIGKILL)
    verdict = future.result(timeout=20)
    expected = {"the candidate": "killed: SIGKILL", "the judge": "worker died",
                "the one we started": "worker died|timed out"}  # bubblewrap of root cannot take its judge along
    assert re.match(expected[victim], verdict.reason)
    assert until(lambda: not any(alive(process) for process in processes))
    assert sandbox.submit(*GOOD).result().reason == "ok"


def family(sandbox):
    """The one running process of a sandbox, its child, and so on."""
    with sandbox.cells.lock:
        found = [process.pid for process in sandbox.cells.running]
    while found and (below := children(found[-1])):
        found.append(below[0])
    return found


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("kind", [*STRONG, "weak"])
def test_a_trainer_that_is_killed_takes_its_sandboxes_along(kind, open_folder):
    opened(kind).close()
    code = f"one = Sandbox(Limits(60.0), **{settings_of(kind)})\nprint('opened', flush=True)\none.run(*{SLEEPS})"
    before = judges()
    trainer = subprocess.Popen([sys.executable, "-c", BY_FILE + code], stdout=subprocess.PIPE,
                               env={**os.environ, "TMPDIR": open_folder})
    trainer.stdout.readline()
    assert until(lambda: len(judges() - before) >= (2 if kind == "weak" else 3))
    time.sleep(0.2)  # until it sleeps in its function
    trainer.kill()
    trainer.communicate()
    assert until(lambda: not judges() - before)


def test_closing_ends_what_runs_and_drops_what_waits():
    sandbox = opened("namespaces", workers=1)
    futures = [sandbox.submit(*SLEEPS) for _ in range(3)]
    assert until(lambda: sandbox.cells.running)
    began = time.monotonic()
    sandbox.close()
    assert time.monotonic() - began < SHORT.wall_seconds + GRACE_SECONDS
    assert not futures[0].result().passed
    assert all(future.cancelled() for future in futures[1:])
    assert sandbox.run(*GOOD).reason == "unavailable: this sandbox is closed"
    with pytest.raises(RuntimeError, match="after shutdown"):
        sandbox.submit(*GOOD)


FULL_DISK = """
import os, subprocess, sys, tempfile
folder = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=2", "tmpfs", folder], check=True)
open(folder + "/last", "w").close()
tempfile.tempdir = os.environ["TMPDIR"] = folder
for kind in ({}, {"kinds": (), "allow_weak_sandbox": True}):
    try:
        with Sandbox(**kind) as sandbox:
            print(sandbox.kind, sandbox.run("def f():\\n    return 1", "assert f() == 1").reason)
    except RuntimeError as error:
        print(error)
"""


def test_a_full_temporary_disk_is_nothing_to_a_strong_sandbox_and_a_reason_of_the_weak_one(tmp_path):
    if not shutil.which("unshare"):
        pytest.skip("no `unshare` to make a full disk with")
    opened("namespaces").close()
    private = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    ran = subprocess.run(["unshare", *private, sys.executable, "-c", BY_FILE + FULL_DISK, str(tmp_path)],
                         capture_output=True, text=True, check=False)
    if "mount" in ran.stderr:
        pytest.skip(ran.stderr)
    strong, weak = ran.stdout.splitlines()
    assert strong.endswith(" ok"), ran.stderr
    assert "weak: [Errno 28] No space left on device" in weak


def test_a_full_disk_while_scoring_makes_verdicts_not_errors(monkeypatch, tmp_path):
    with opened("weak") as sandbox:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
        assert sandbox.submit(*GOOD).result().reason.startswith("unavailable: [Errno 2] No such file or directory")


def test_no_interpreter_to_start_is_a_verdict(strong, monkeypatch):
    monkeypatch.setattr("lit_cpt.sandbox.kinds.FIRST_VICTIM", ("/nowhere/sh",))
    assert strong.run(*GOOD).reason == "unavailable: [Errno 2] No such file or directory: '/nowhere/sh'"


@pytest.fixture
def copied(open_folder):
    """The sandbox's files where every user may read them, whoever owns the repository."""
    shutil.copytree(HERE, f"{open_folder}/lit_cpt/sandbox")
    return BY_FILE.replace(str(Path(HERE).parent), f"{open_folder}/lit_cpt")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try another user's rights")
@pytest.mark.parametrize("kind", [*STRONG, "weak"])
def test_a_user_without_rights_has_the_same_sandbox(kind, copied):
    opened(kind).close()
    python = "/usr/bin/python3"  # this interpreter may lie in root's home
    if not os.access(python, os.X_OK):
        pytest.skip(f"no {python}, which every user may run")
    code = copied + f"with Sandbox(**{settings_of(kind)}) as sandbox: print(sandbox.kind, sandbox.preflight())"
    ran = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, user=65531, group=65531,
                         extra_groups=[], cwd="/")
    assert ran.stdout.split() == [kind, "None"], ran.stderr


def test_where_no_strong_sandbox_works_the_error_names_what_is_missing_and_the_cure(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="bubblewrap: no `bwrap` on the PATH. Install bubblewrap 0.5 or later"):
        Sandbox(kinds=("bubblewrap",))


def test_a_kind_that_fails_says_why(monkeypatch, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho bwrap: No permissions to create new namespace >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="worker died .exit status 1. bwrap: No permissions to create"):
        Sandbox(kinds=("bubblewrap",))


@pytest.mark.skipif(os.geteuid() != 0, reason="only real root can be root without another uid to take")
def test_root_that_has_no_other_uid_to_take_is_refused():
    code = BY_FILE + "Sandbox(kinds=('namespaces',))"
    ran = subprocess.run(["unshare", "--user", "--map-root-user", sys.executable, "-c", code], capture_output=True,
                         text=True, check=False)
    if "unshare" in ran.stderr.splitlines()[0]:
        pytest.skip(ran.stderr)
    assert re.search(r"namespaces: root in a user namespace without uid \d+: the kernel does not count", ran.stderr)


@pytest.mark.parametrize(("settings", "message"), [
    ({"kinds": ("weak",)}, "kinds=('weak',) has ['weak']; strong ones are bubblewrap, namespaces"),
    ({"kinds": ("docker", "namespaces")}, "has ['docker']"), ({"workers": 0}, "workers=0 must be 1 or more")])
def test_a_sandbox_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)").replace("[", r"\[")):
        Sandbox(**settings)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
def test_limits_are_above_0(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be above 0"):
        Limits(**{name: 0})


def test_limits_of_the_kernel_are_whole_numbers():
    with pytest.raises(TypeError, match="cpu_seconds=1.5 must be an int"):
        Limits(cpu_seconds=1.5)


PLAIN = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
                     | st.complex_numbers(allow_nan=False) | st.builds(range, st.integers(0, 9)),
                     lambda inner: st.lists(inner) | st.lists(inner).map(tuple)
                     | st.dictionaries(st.text() | st.integers(), inner) | st.sets(st.integers() | st.text()))


@given(PLAIN)
def test_plain_data_crosses_unchanged(value):
    source, target = os.pipe()
    os.write(target, pack(to_plain([value]))[:2**15])
    os.close(target)
    try:
        line = Line(source, os.open(os.devnull, os.O_WRONLY), 2**15)
        crossed = from_plain(line.receive())[0]
    finally:
        os.close(source)
        os.close(line.target)
    assert (crossed, type(crossed)) == (value, type(value))


def test_of_a_subclass_its_data_cross_and_of_an_iterable_its_items():
    class Equal(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    assert type(from_plain(to_plain(Equal(3)))) is int
    assert list(from_plain(to_plain(n * n for n in range(3)))) == [0, 1, 4]


def test_a_line_tells_of_its_end_and_of_too_much():
    source, target = os.pipe()
    line = Line(source, target, longest=10)
    line.send("x" * 20)
    with pytest.raises(ValueError, match="an answer of 22 bytes; 10 is the most"):
        line.receive()
    os.close(target)
    line.read(22)
    with pytest.raises(Gone):
        line.receive()
    os.close(source)


def test_a_line_ends_with_its_deadline():
    source, target = os.pipe()
    line = Line(source, target, 10, deadline=time.monotonic() + 0.05)
    with pytest.raises(TimeoutError, match="no answer in time"):
        line.receive()
    with pytest.raises(TimeoutError, match="no answer in time"):
        line.send("x" * 2**20)
    os.close(source)
    os.close(target)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_names_every_refused_call_of_its_machine(machine):
    column = MACHINES[machine]
    words = {int.from_bytes(step[4:], sys.byteorder) for step in refusing(column)}
    assert words >= {numbers[column] for numbers in REFUSED.values()} | {AUDIT[column], NUMBERS["clone3"][column]}


def test_the_sandbox_imports_without_torch_and_without_our_dependencies():
    code = BY_FILE + "print([name for name in ('torch', 'numpy', 'lightning') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ran.stdout.strip() == "[]", ran.stderr

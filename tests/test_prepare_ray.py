"""A Ray cluster prepares a source: the bytes are those of one machine, and mistakes read as they do there."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from test_prepare import content, save_tokenizer, sentences

from lit_cpt.cli import main
from lit_cpt.manifest import Manifest
from lit_cpt.prepare import PrepareSettings, RayEngine, prepare, prepare_source
from lit_cpt.prepare.job import STATE, Job
from lit_cpt.prepare.ray_engine import at_a_time, check_answers, deal, digest_of, do_shard, import_ray, seen_from_here
from lit_cpt.prepare.shard import Shard

SETTINGS = PrepareSettings(validation=0.1, part_bytes=3000, chunk_bytes=2000)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Inputs, a tokenizer, and the source that one machine makes of them."""
    folder = tmp_path_factory.mktemp("world")
    inputs = []
    for seed in range(4):
        path = folder / f"{seed}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(40, seed)))
        inputs.append(str(path))
    tokenizer = str(save_tokenizer(folder / "tokenizer"))
    prepare_source(inputs, tokenizer, folder / "alone", SETTINGS, workers=2)
    return inputs, tokenizer, folder / "alone"


@pytest.fixture
def command(world, tmp_path):
    inputs, tokenizer, _ = world
    return ["prepare", "--input", *inputs, "--tokenizer", tokenizer, "--output", str(tmp_path / "out")]


@pytest.fixture
def begun(world, tmp_path):
    """The plan of a source as the machine that begins leaves it on the shared disk."""
    inputs, tokenizer, _ = world
    copies = []
    for path in inputs:
        copies.append(tmp_path / os.path.basename(path))
        shutil.copy(path, copies[-1])
    state = tmp_path / "out" / STATE
    state.mkdir(parents=True)
    Job.plan(list(map(str, copies)), tokenizer, SETTINGS).save(state)
    return state, copies


# what needs no Ray


@pytest.mark.parametrize(("more", "told"), [
    (["--address", "auto"], "address=auto is for a Ray cluster, and the engine is local; add --engine ray, or"),
    (["--shards", "3"], "shards=3 is for a Ray cluster, and the engine is local; add --engine ray"),
    (["--engine", "ray", "--shard", "0/2"], "shard=0/2 does not go with engine=ray, which deals the shards"),
    (["--engine", "ray", "--merge"], "merge does not go with engine=ray, which deals the shards and merges"),
    (["--engine", "ray", "--shards", "0"], "shards=0 is too few; give 1 or more"),
])
def test_options_that_do_not_go_together_are_refused(command, capsys, more, told):
    assert main([*command, *more]) == 2
    assert told in capsys.readouterr().err


def test_an_engine_that_is_none_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match="engine='spark' is not known; choose local or ray"):
        prepare(world[0], world[1], str(tmp_path / "out"), engine="spark")


def test_without_ray_the_message_says_what_to_install(command):
    code = "import sys; sys.modules['ray'] = None; from lit_cpt.cli import main; sys.exit(main(sys.argv[1:]))"
    ran = subprocess.run([sys.executable, "-c", code, *command, "--engine", "ray"], capture_output=True, text=True,
                         check=False)
    assert ran.returncode == 2
    assert 'engine=ray needs Ray, which is not installed: pip install "lit-cpt[ray]"' in ran.stderr


def test_the_shards_dealt_are_those_with_work_left(begun):
    state, _ = begun
    job = Job.load(state)
    assert len(deal(job, state, 10_000)) == len(job.parts)
    for part in Shard(1, 3).of(job.parts):
        (state / f"part-{part.index:06d}").mkdir()
    assert deal(job, state, 3) == [Shard(0, 3), Shard(2, 3)]


def test_a_node_that_sees_all_reads_the_plan(begun):
    state, copies = begun
    assert [file.path for file in seen_from_here(state, digest_of(state)).inputs] == list(map(str, copies))


def test_a_node_without_the_shared_folder_names_itself(tmp_path):
    with pytest.raises(ValueError, match=rf"node '{socket.gethostname()}' does not see what was begun in output "
                                         r"'.*out': all nodes have to share it on one disk, under the same path"):
        do_shard(Shard(0, 1), str(tmp_path / "out"), "0" * 64, 1)


def test_a_node_without_an_input_or_with_another_one_names_both(begun):
    state, copies = begun
    copies[1].write_text("other\n")
    with pytest.raises(ValueError, match=rf"node '.+' sees another file at input '{copies[1]}' \(6 bytes, not"):
        seen_from_here(state, digest_of(state))
    copies[1].unlink()
    with pytest.raises(ValueError, match=rf"node '.+' does not see input '{copies[1]}': all nodes have to share it"):
        seen_from_here(state, digest_of(state))


def test_a_node_without_the_tokenizer_names_it(begun, tmp_path):
    state, _ = begun
    plan = (state / "job.json").read_text()
    (state / "job.json").write_text(plan.replace(json.loads(plan)["tokenizer"], str(tmp_path / "gone")))
    with pytest.raises(ValueError, match="node '.+' does not see tokenizer '.*gone': all nodes have to share it"):
        seen_from_here(state, digest_of(state))


@pytest.fixture
def closed():
    """An address at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and never listening
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_a_knock_tells_at_once_that_nobody_answers(closed):
    for address in (closed, f"ray://{closed}"):
        with pytest.raises(ConnectionRefusedError):
            check_answers(address)
    check_answers("auto")  # nowhere to knock


# what needs Ray


@pytest.fixture(scope="module")
def cluster():
    """Address of a cluster of two nodes with a core each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    nodes.add_node(**node)
    yield nodes.address
    nodes.shutdown()


def test_where_no_cluster_is_the_message_says_how_to_start_one(command, capsys, closed, monkeypatch):
    pytest.importorskip("ray")
    told = "Start one with `ray start --head`, or name one that runs with --address HOST:PORT."
    for address, cause in ((closed, "Connection refused"), ("nonsense", "address"),
                           ("head:x", "Port could not be cast")):
        assert main([*command, "--engine", "ray", "--address", address]) == 2
        error = capsys.readouterr().err
        assert f"no Ray cluster can be used at address={address!r} (" in error
        assert cause in error
        assert told in error
    monkeypatch.setenv("RAY_ADDRESS", closed)
    assert main([*command, "--engine", "ray"]) == 2
    assert "no Ray cluster can be used at address='auto' (" in capsys.readouterr().err


def lit_cpt(command):
    """A command in a process of its own: Ray may end one that lost a task and connects again (seen with 2.60)."""
    return subprocess.run([sys.executable, "-m", "lit_cpt", *command], capture_output=True, text=True, check=False)


def within(seconds, holds):
    """Whether something comes to hold in time."""
    deadline = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return held


def at_work(folder):
    """The processes of crews in ``folder``, each with its parent: another of them, or a Ray worker."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    lines = [line.split(None, 2) for line in listed.stdout.splitlines() if f"lit_cpt.prepare.crew {folder}" in line]
    return {int(process): int(parent) for process, parent, _ in lines}


def await_worker(folder):
    assert within(120, lambda: at_work(folder)), "no task began"
    crews = at_work(folder)
    return next(parent for parent in crews.values() if parent not in crews)


def kill_one(folder):
    """Kill the first Ray worker that does a task; returns who does it, and the list of who was killed."""
    killed = []

    def kill():
        killed.append(await_worker(folder))
        os.kill(killed[0], signal.SIGKILL)

    murder = threading.Thread(target=kill)
    murder.start()
    return murder, killed


@pytest.mark.slow
def test_a_cluster_writes_the_bytes_of_one_machine_though_a_worker_is_killed(cluster, world, tmp_path, monkeypatch):
    inputs, tokenizer, alone = world
    ray = import_ray()
    murder, killed = kill_one(tmp_path / "out")
    monkeypatch.chdir(os.path.dirname(inputs[0]))
    names = [os.path.basename(path) for path in inputs]
    RayEngine(cluster, shards=3).prepare(names, tokenizer, tmp_path / "out", SETTINGS)
    murder.join()
    assert killed
    assert content(tmp_path / "out") == content(alone)
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_task_that_is_lost_once_too_often_says_how_to_go_on(cluster, world, tmp_path, monkeypatch):
    inputs, tokenizer, _ = world
    monkeypatch.setattr("lit_cpt.prepare.ray_engine.RETRIES", 0)
    murder, _ = kill_one(tmp_path / "out")
    with pytest.raises(RuntimeError, match=r"a task was lost, and again in each of 0 retries \(.+\). Finished parts "
                                           rf"are kept in {tmp_path / 'out'}; run the same command again to continue"):
        RayEngine(cluster, shards=1).prepare(inputs, tokenizer, tmp_path / "out", SETTINGS)
    murder.join()


@pytest.mark.slow
def test_a_mistake_in_a_task_reads_as_without_ray_and_is_not_retried(cluster, world, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "good"}\n{"text\n')
    command = ["prepare", "--input", str(broken), "--tokenizer", world[1], "--output", str(tmp_path / "out")]
    told = []
    for engine in ([], ["--engine", "ray", "--address", cluster]):
        ran = lit_cpt([*command, *engine])
        assert ran.returncode == 2
        told.append(ran.stderr)
    assert f"{broken}:2: broken JSON" in told[0]
    assert told[1].splitlines()[-1] == told[0].splitlines()[-1]
    assert "Traceback" not in told[1]
    assert lit_cpt([*command, *engine, "--on-error", "skip"]).returncode == 0  # goes on by the new word
    assert Manifest.load(tmp_path / "out").skipped_documents == 1


@contextmanager
def held_back(folder):
    """A task in ``folder`` waits for the record of its tokenizer, which is a pipe that nobody writes into.

    Yields:
        Tells whether one waits.
    """
    pipe, ends = folder / STATE / "tokenizer.json", []
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)

    def waits():
        with suppress(OSError):  # nobody has come to read yet
            ends[:] = ends or [os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)]
        seen = select.poll()
        for end in ends:
            seen.register(end, 0)
        return bool(ends) and not seen.poll(0)  # an error is all it may report: that the reader is gone

    try:
        yield waits
    finally:
        pipe.unlink()
        for end in ends:
            os.close(end)


@pytest.mark.slow
def test_ctrl_c_ends_the_task_and_a_second_run_continues(cluster, world, tmp_path, command, interruptible):
    command += ["--engine", "ray", "--address", cluster, "--shards", "1"]
    with held_back(tmp_path / "out") as waits:
        with subprocess.Popen([sys.executable, "-m", "lit_cpt", *command], stderr=subprocess.PIPE, text=True) as ran:
            began = within(120, waits)
            ran.send_signal(signal.SIGINT)
            try:
                told = ran.communicate(timeout=120)[1]
            finally:
                ran.kill()
        assert began
        assert ran.returncode == 1, told
        assert f"stopped; finished parts are kept in {tmp_path / 'out'}. Run the same command again to cont" in told
        assert within(30, lambda: not waits() and not at_work(tmp_path / "out")), "the task is still at work"
    assert lit_cpt(command).returncode == 0
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.slow
def test_a_task_that_no_node_can_hold_is_refused_and_the_callers_connection_stays(cluster, world, tmp_path):
    inputs, tokenizer, alone = world
    ray = import_ray()
    ray.init(address=cluster, log_to_driver=False)
    try:
        assert at_a_time(ray, 1) == 2
        with pytest.raises(ValueError, match=r"workers=2 are more than any node of the Ray cluster has cores \(1\)"):
            RayEngine().prepare(inputs, tokenizer, tmp_path / "out", SETTINGS, workers=2)
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    RayEngine(cluster).prepare(inputs, tokenizer, alone, SETTINGS)  # finished: nothing to do

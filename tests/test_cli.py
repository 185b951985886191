"""The command as a user meets it: what it prints, how it ends, and what it leaves behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import LENGTH

from lit_cpt import __version__, cli
from lit_cpt.cli import COMMANDS, explain, is_users, main
from lit_cpt.units import parse_count

HEAVY = ["torch", "lightning", "litdata", "transformers", "matplotlib"]
RUN = ["--config", "base", "--config", "hardware/cpu", "--config", "run.yaml", "--run", "run"]


@pytest.fixture
def here(sources, tiny, tmp_path, monkeypatch):
    """An empty folder but for the config of a tiny run, `run.yaml`."""
    config = {
        "recipe": {"token_horizon": 20 * 4 * LENGTH, "curve": {"class_path": "Cosine", "init_args": {"eta_max": 1e-2}},
                   "phases": [{"name": "first", "blend": {"weights": {"a": 0.6, "b": 0.4}}}]},
        "model": {"architecture": tiny},
        "data": {"sources": sources, "sequence_length": LENGTH, "global_batch": 4, "micro_batch": 4, "workers": 0}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def left(folder):
    """Files of a folder, but for the event file that Lightning opens before it looks at anything."""
    paths = (path for path in Path(folder).rglob("*") if path.is_file() and "tfevents" not in path.name)
    return sorted(str(path.relative_to(folder)) for path in paths)


# Help --------------------------------------------------------------------------------------------------


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = ("import sys\nfrom lit_cpt.cli import main\nstatus = main(['--help'])\n"
            f"print([name for name in {HEAVY} if name in sys.modules])\nsys.exit(status)")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    *text, heavy = ran.stdout.splitlines()
    assert heavy == "[]"
    assert [line.split()[0] for line in text if line.startswith("  ")] == list(COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["--debug"], ["--debug", "--help"]])
def test_the_usage_is_printed_without_a_command(arguments, capsys):
    assert main(arguments) == 0
    assert "usage: lit-cpt COMMAND" in capsys.readouterr().out


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(("command", "option"), [
    ("prepare", "--text_template"), ("blend", "--max_epochs"), ("plan", "--plot"), ("data", "--steps"),
    ("fit", "--data.global_batch"), ("validate", "--ckpt_path"), ("eval", "--compare"), ("eval-data", "--families"),
    ("export", "--dtype"), ("checkpoint", "--output"), ("report", "--control"), ("quickstart", "--short"),
    ("worlds", "--models"), ("ablate", "--plan")])
def test_every_command_has_help(command, option, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: lit-cpt ")
    assert command in shown.splitlines()[0]
    assert option in shown


def test_every_command_is_tested_for_its_help():
    assert set(COMMANDS) == {"prepare", "data", "blend", "plan", "fit", "validate", "eval", "eval-data", "export",
                             "checkpoint", "worlds", "ablate", "report", "quickstart"}


def test_the_package_runs_as_a_module():
    ran = subprocess.run([sys.executable, "-m", "lit_cpt", "nonsense"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == ("lit-cpt: 'nonsense' is no command; the commands are quickstart, prepare, data, blend, plan, "
                          "fit, validate, eval, eval-data, export, checkpoint, ablate, worlds, report.\n")


# The user's mistakes: exit 2, one line, nothing left behind ------------------------------------------------


# tests/test_error_catalogue.py has what is told of each; here is that commands which take the same say the same.


@pytest.mark.parametrize("command", ["fit", "plan"])
@pytest.mark.parametrize(("mistake", "message"), [
    (["--config", "recipes/papr"], "--config recipes/papr: there is no such file.*recipes/paper,"),
    (["--data.global_batch", "many"], "data.global_batch: expected int; given value: many.*--help` lists"),
    (["--data.sources.a", "gone"], "source 'a': there is no folder 'gone'; name one that `lit-cpt prepare` wrote")])
def test_a_mistake_is_told_in_one_line_with_key_and_cure(here, capsys, command, mistake, message):
    arguments = RUN if command == "fit" else RUN[:-2]
    assert main([command, *arguments, *mistake]) == 2
    assert_told(capsys, command, message)
    assert not (here / "run").exists()


@pytest.mark.parametrize(("settings", "message"), [
    ({"suite": {"taks": ["mmlu"]}}, "trainer.callbacks: Suite takes no taks; it takes tasks,.* Did you mean tasks?"),
    ({"when": {"every_tokens": "lots"}}, "every_tokens='lots' is not a count"),
    ({"suite": {"tasks": ["hellaswag"], "limit": -2}}, "limit=-2 must be 1 or more documents"),
    ({"effort": {"seconds": 0}}, "seconds=0.0 must be positive")])
def test_a_mistake_deep_in_a_callback_is_told_in_one_line(here, capsys, settings, message):
    asked = {"class_path": "lit_cpt.callbacks.EvalCallback", "init_args": settings}
    (here / "asked.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [asked]}}))
    assert main(["fit", *RUN, "--config", "asked.yaml"]) == 2
    assert_told(capsys, "fit", message)
    assert left(here) == ["asked.yaml", "run.yaml"]


def assert_told(capsys, command, message):
    """One line on stderr, which matches."""
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if line.startswith(f"lit-cpt {command}: ")]
    assert len(told) == 1, lines
    assert lines == told
    assert re.search(message.replace("?", r"\?"), told[0]), told[0]
    assert "Traceback" not in told[0]


@pytest.mark.parametrize("words", [["--help"], ["plan", "--config", "recipes/paper"]])
def test_a_reader_that_goes_before_the_end_is_no_error(words):
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run([sys.executable, "-m", "lit_cpt", *words], stdout=write, stderr=subprocess.PIPE, text=True,
                         check=False)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (1, "")


def test_debug_shows_where_a_mistake_arose(capsys):
    assert main(["--debug", "plan", "--config", "gone"]) == 2
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert said.splitlines()[-1].startswith("lit-cpt plan: --config gone: there is no such file")


# What is nobody's mistake: exit 1 --------------------------------------------------------------------------


def test_an_error_in_a_users_own_code_exits_1_with_its_traceback(here, capsys, monkeypatch):
    (here / "broken_curve.py").write_text(
        "from lit_cpt import Curve\n\nclass Broken(Curve):\n    def __init__(self, eta_max: float = 1e-2):\n"
        "        self.eta_max = eta_max\n\n    def eta(self, progress):\n        return {}['rate']\n")
    monkeypatch.syspath_prepend(str(here))
    assert main(["fit", *RUN, "--recipe.curve", "broken_curve.Broken"]) == 1
    said = capsys.readouterr().err
    assert "KeyError: 'rate'" in said
    assert said.splitlines()[-1].startswith("lit-cpt fit: this is not a known mistake of input")


def raised(code, name="elsewhere.py"):
    """The error that ``code`` raises as if it stood in the file ``name``."""
    try:
        exec(compile(code, name, "exec"), {})
    except BaseException as error:
        return error


def test_only_what_lit_cpt_refuses_itself_is_the_users_mistake():
    ours = Path(__file__).parent.parent / "lit_cpt" / "cli.py"
    assert not is_users(raised("raise ValueError('of a library')"))
    assert not is_users(raised("raise RuntimeError('ours')", str(ours)))
    assert not is_users(raised("import json\njson.loads('{')", str(ours)))
    assert is_users(raised("raise FileNotFoundError('anywhere')"))
    with pytest.raises(ValueError, match="value='many'") as caught:
        parse_count("many")
    assert is_users(caught.value)


def test_a_slip_in_our_own_code_is_not_the_users_mistake(tmp_path, monkeypatch):
    (tmp_path / "slip.py").write_text("def slip():\n    int('x')\n\ndef refuse():\n    raise ValueError('x=1')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(cli, "own_folders", lambda: {tmp_path.resolve()})
    import slip

    for function, verdict in ((slip.slip, False), (slip.refuse, True)):
        with pytest.raises(ValueError, match="x") as caught:
            function()
        assert is_users(caught.value) is verdict


def test_a_checkpoint_that_another_rank_could_not_write_is_one_line(capsys):
    assert explain(OSError(5, "another rank could not write it", "step-4.ckpt"), "fit") == 1
    assert capsys.readouterr().err == "lit-cpt fit: [Errno 5] another rank could not write it: 'step-4.ckpt'\n"


class OutOfMemoryError(RuntimeError):
    """As torch's, which the command line knows by its name."""


@pytest.mark.parametrize("error", [
    OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), MemoryError("no room"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: not enough memory: you tried to ...")])
def test_memory_that_is_full_is_one_message_with_its_mends(capsys, error):
    error.newest, error.resume_with = "run/checkpoints/step-4.ckpt", "lit-cpt fit --ckpt_path last"
    assert explain(error, "fit") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"lit-cpt fit: the memory is full ({error}). Lower data.micro_batch, which changes no step")
    assert "activation_checkpointing true. The newest whole checkpoint is run/checkpoints/step-4.ckpt.\n" in said
    assert said.endswith("resume with: lit-cpt fit --ckpt_path last\n")
    assert explain(error, "prepare") == 1
    assert "Use smaller batches" in capsys.readouterr().err


def test_a_full_disk_says_how_to_go_on(capsys):
    assert explain(OSError(28, "No space left on device"), "prepare") == 1
    assert "the disk is full" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "status", "ends"), [
    (OSError(28, "No space left on device"), 1, "go on from run/1.ckpt, the newest whole checkpoint."),
    (OSError(122, "Disk quota exceeded"), 1, "go on from run/1.ckpt, the newest whole checkpoint."),
    (RuntimeError("x"), 1, "the traceback above tells where it arose.")])
def test_an_error_that_left_a_checkpoint_ends_with_the_command_to_resume(capsys, error, status, ends):
    error.newest, error.resume_with = "run/1.ckpt", "lit-cpt fit --run x --ckpt_path last"
    assert explain(error, "fit") == status
    said = capsys.readouterr().err.splitlines()
    assert said[-2].endswith(ends)
    assert said[-1] == "resume with: lit-cpt fit --run x --ckpt_path last"


def test_a_mistake_of_input_ends_without_it(capsys):
    error = raised("raise FileNotFoundError('--ckpt_path x: no such file')")
    error.resume_with = "lit-cpt fit"
    assert explain(error, "fit") == 2
    assert capsys.readouterr().err == "lit-cpt fit: --ckpt_path x: no such file\n"


def test_an_interrupt_that_lightning_made_an_exit_of_says_that_the_run_stopped(monkeypatch, capsys):
    def interrupted(arguments):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SystemExit(1)  # noqa: B904  # as Lightning does

    monkeypatch.setattr("lit_cpt.plan_command.plan_command", interrupted)
    assert main(["plan"]) == 1
    assert capsys.readouterr().err == "\nlit-cpt plan: stopped.\n"

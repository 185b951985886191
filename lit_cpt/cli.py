"""The `lit-cpt` command: finds the command asked for, runs it, and turns mistakes into one clear message.

Nothing heavy is imported here: `lit-cpt --help` and `lit-cpt plan` start without torch.
"""

from __future__ import annotations

import errno
import importlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COMMANDS = {
    "quickstart": ("the whole idea in minutes, offline, on a CPU", "lit_cpt.commands:quickstart_command"),
    "prepare": ("raw text to tokens, one folder per source", "lit_cpt.commands:prepare_command"),
    "data": ("`data check`: a run's stream, read and compared, without a model", "lit_cpt.commands:data_command"),
    "blend": ("`blend suggest`: weights of both blends, from sizes, quality and weak areas",
              "lit_cpt.blend_command:blend_command"),
    "plan": ("what a run will do, before it does it", "lit_cpt.plan_command:plan_command"),
    "fit": ("train by a recipe; --ckpt_path last resumes", "lit_cpt.training:training_command"),
    "validate": ("loss of a model on each source", "lit_cpt.training:training_command"),
    "eval": ("scores of a checkpoint or model on MMLU, HellaSwag, HumanEval, MGSM",
             "lit_cpt.eval_command:eval_command"),
    "eval-data": ("`eval-data fetch|check`: the benchmarks' data, also for machines without a network",
                  "lit_cpt.eval_data_command:eval_data_command"),
    "export": ("the model of a checkpoint as a Hugging Face folder", "lit_cpt.commands:export_command"),
    "checkpoint": ("`checkpoint inspect|consolidate`: what checkpoints hold; one file of what several ranks wrote",
                   "lit_cpt.checkpoint_command:checkpoint_command"),
    "ablate": ("a grid of runs that share their trunks, and one table of what came of it",
               "lit_cpt.ablate_command:ablate_command"),
    "worlds": ("small worlds with pretrained models, which the ready grids start from",
               "lit_cpt.worlds_command:worlds_command"),
    "report": ("one page for one run or several", "lit_cpt.commands:report_command"),
}
# Of remote, perhaps out of a loader's worker; of restarts; of rollback; of stream; of lab.side_by_side.
ENDS = ("Unreachable", "RankLost", "Unstable", "Stalled", "ArmFailed")
SMALLER = {"fit": "Lower data.micro_batch, which changes no step: accumulation makes up for it. Or recompute "
                  "activations: --config hardware/sharded --trainer.strategy.init_args.activation_checkpointing true."}
USAGE = """usage: lit-cpt COMMAND [OPTIONS]

Continued pretraining of language models, by the recipe of arXiv 2407.07263.

{commands}

New here: `lit-cpt quickstart` shows all of it, offline; then come prepare, plan, fit and report.
lit-cpt COMMAND --help tells a command's options; --debug (before COMMAND) shows the traceback of an error.
Exit status: 0 done, 2 the input is wrong, 1 anything else.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lit-cpt`.

    Args:
        argv: Arguments after the program's name; the process's own where not given.

    Returns:
        Exit status: 0 done, 2 the user's input is wrong, 1 anything else.
    """
    try:
        status = dispatched(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to be printed
        return 1


def dispatched(arguments: list[str]) -> int:
    """What `main` does, and its exit status."""
    debug = "--debug" in arguments[:1]
    arguments = arguments[debug:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(importlib.import_module("lit_cpt").__version__)
        return 0
    if arguments[0] not in COMMANDS:
        print(f"lit-cpt: {arguments[0]!r} is no command; the commands are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    return run(arguments, debug)


def usage() -> str:
    """The text of `lit-cpt --help`."""
    return USAGE.format(commands="\n".join(f"  {name:<11} {purpose}" for name, (purpose, _) in COMMANDS.items()))


def run(arguments: list[str], debug: bool) -> int:
    """Run one command; ``arguments`` begins with its name."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("lit_cpt").setLevel(logging.INFO)
    module, function = COMMANDS[arguments[0]][1].split(":")
    try:
        getattr(importlib.import_module(module), function)(arguments)
    except BrokenPipeError:  # for `main`
        raise
    except SystemExit as stop:  # argparse's way to end --help (0) and a usage error (2); Lightning's on Ctrl-C
        if isinstance(stop.__context__, KeyboardInterrupt):
            print(f"\nlit-cpt {arguments[0]}: stopped.", file=sys.stderr)
        say_how_to_resume(stop)
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        print(f"\nlit-cpt {arguments[0]}: stopped.", file=sys.stderr)
        return 1
    except BaseException as error:
        if debug:
            traceback.print_exc()
        return explain(error, arguments[0])
    return 0


def explain(error: BaseException, command: str) -> int:
    """Print what went wrong, as a person needs it, and return the exit status."""
    if type(error).__name__ == "Stopped":  # graceful_stop.Stopped; its module would import Lightning
        print(f"\nlit-cpt {command}: {error}", file=sys.stderr)
        say_how_to_resume(error)
        return 1
    if (ended := end_of(error, command)) is not None:
        print(f"lit-cpt {command}: {ended}", file=sys.stderr)
        say_how_to_resume(error)
        return 1
    if (refused := users_mistake(error)) is not None:
        print(f"lit-cpt {command}: {said_of(refused)}", file=sys.stderr)
        return 2
    traceback.print_exception(error)
    print(f"lit-cpt {command}: this is not a known mistake of input; the traceback above tells where it arose.",
          file=sys.stderr)
    say_how_to_resume(error)
    return 1


def end_of(error: BaseException, command: str) -> str | None:
    """What ended a command though its input was right: a full disk or memory, a lost store or rank; else None."""
    newest = getattr(error, "newest", None)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        again = f"go on from {newest}, the newest whole checkpoint." if newest else "run the same command again."
        return f"the disk is full ({error}). Free some space and {again}"
    if out_of_memory(error):
        mend = SMALLER.get(command, "Use smaller batches, or a machine with more.")
        kept = f" The newest whole checkpoint is {newest}." if newest else ""
        return f"the memory is full ({' '.join(str(error).split())[:300]}). {mend}{kept}"
    failed = isinstance(error, OSError) and error.errno == errno.EIO  # a disk, of this rank or of another
    if failed or type(error).__name__ in ENDS:
        return str(error).rsplit("Unreachable: ", 1)[-1].strip()
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left: torch tells the host's with a plain RuntimeError."""
    said = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return said or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def said_of(error: BaseException) -> str:
    """Its message; the system's own, which names no cure, with what to look at."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror.lower()}. Look at the paths that the command and its configs name."
    return str(error)


def say_how_to_resume(error: BaseException) -> None:
    """End with the command that goes on from the newest whole checkpoint, where training left one."""
    if (command := getattr(error, "resume_with", None)) is not None:
        print(f"resume with: {command}", file=sys.stderr)


def users_mistake(error: BaseException) -> BaseException | None:
    """The error by which lit_cpt refused a value, also where the parser wrapped it in what else it tried."""
    if is_users(error):
        return error
    told = traceback.extract_tb(error.__traceback__)
    inside = isinstance(error, ValueError) and bool(told) and "jsonargparse" in told[-1].filename
    below = error.__cause__ or error.__context__
    return users_mistake(below) if inside and below is not None else None


def is_users(error: BaseException) -> bool:
    """Whether lit_cpt itself refused a value: its own ``raise`` of a built-in error, not one from a library."""
    if type(error).__name__ == "ArgumentError":
        return True
    if not isinstance(error, (ValueError, FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError,
                              IsADirectoryError)):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    raised = not last.line or last.line.startswith("raise")  # else a slip of ours, such as int("x")
    return (raised and Path(last.filename).resolve().parent in own_folders()) or not isinstance(error, ValueError)


def own_folders() -> set[Path]:
    """Folders that hold lit_cpt's code."""
    top = Path(__file__).resolve().parent
    return {top, *(path.resolve() for path in top.iterdir() if path.is_dir())}


def print_json(value: Any) -> None:
    """``value`` for another program to read."""
    print(json.dumps(value, indent=1))

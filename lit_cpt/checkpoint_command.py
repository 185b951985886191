"""`lit-cpt checkpoint`: tells what checkpoints hold, and makes one file of what several ranks wrote."""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

from lit_cpt.arguments import command_parser, divided, parse
from lit_cpt.checkpoints import checkpoints_in
from lit_cpt.cli import print_json
from lit_cpt.consolidation import Holdings, consolidate, holdings
from lit_cpt.copying import writer_of
from lit_cpt.mirror import Mirror, read_index, step
from lit_cpt.standalone import newest_of
from lit_cpt.units import format_count
from lit_cpt.weights import is_distributed

DESCRIPTION = """Tells what checkpoints hold and whether they are whole (`inspect`), or makes one file of a checkpoint
that several ranks wrote, from which any strategy resumes (`consolidate`)."""
CALLS = ("checkpoint inspect runs/first", "checkpoint consolidate runs/first --output first.ckpt")


def checkpoint_command(arguments: list[str]) -> None:
    """`lit-cpt checkpoint inspect` and `lit-cpt checkpoint consolidate`.

    Raises:
        FileNotFoundError: There is no such checkpoint, or the run has none.
        ValueError: No such subcommand, or no file to write is named.
    """
    deed, words = divided(arguments, {"inspect": "PATH", "consolidate": "PATH --output FILE"})
    parser = command_parser("checkpoint inspect|consolidate", DESCRIPTION, *CALLS)
    parser.add_argument("path", type=str, metavar="PATH", help="A checkpoint, or a folder of a run: all of its "
                        "checkpoints to inspect, the newest whole one to consolidate. To inspect, also a run's mirror, "
                        "such as s3://bucket/run1.")
    parser.add_argument("--output", type=str, metavar="FILE", help="consolidate: the file to write.")
    parser.add_argument("--json", action="store_true", help="inspect: print JSON.")
    given = parse(parser, words)
    path = Path(given["path"])
    if deed == "inspect":
        found = mirrored(given["path"]) if "://" in given["path"] else [holdings(one) for one in named_by(path)]
        print_json([one.describe() for one in found]) if given["json"] else print(render_holdings(found))
        return
    if not given["output"]:
        raise ValueError("consolidate: --output is missing; name the file to write.")
    chosen = newest_of(path) if path.is_dir() and not is_distributed(path) else path
    consolidate(chosen, Path(given["output"]))
    print(render_holdings([holdings(Path(given["output"]))]))


def named_by(path: Path) -> list[Path]:
    """The checkpoint that ``path`` is, or those of the run that it is, newest first.

    Raises:
        FileNotFoundError: The run has none.
    """
    if not path.is_dir() or path.suffix == ".ckpt":
        return [path]
    found = checkpoints_in(path / "checkpoints") or checkpoints_in(path)
    if not found:
        raise FileNotFoundError(f"{path}: there is no checkpoint in it, nor in its folder checkpoints.")
    return found


def mirrored(url: str) -> list[Holdings]:
    """What a mirror tells of its checkpoints, newest first; nothing else is downloaded.

    Raises:
        FileNotFoundError: It holds none.
    """
    index = read_index(Mirror(url).objects)
    if not index.checkpoints:
        raise FileNotFoundError(f"{url}: there is no checkpoint in it. Give the mirror of a run.")
    return [Holdings(f"{url.rstrip('/')}/{name}", sum(files.values()), step=step(name),
                     ranks=len({writer_of(Path(file)) for file in files if file.endswith(".distcp")}))
            for name, files in sorted(index.checkpoints.items(), reverse=True)]


def render_holdings(found: list[Holdings]) -> str:
    """A line for each checkpoint."""
    heads = ["checkpoint", "step", "tokens", "model", "parameters", "size", "optimizer", "written by", "state"]
    return tabulate([row_of(one) for one in found], heads, disable_numparse=True,
                    colalign=("left", "right", "right", "left", "right", "right", "left", "left", "left"))


def row_of(one: Holdings) -> list[str]:
    """What a checkpoint holds, as text."""
    ranks = f"{one.ranks} rank{'s' * (one.ranks > 1)}" if one.ranks else "one process"
    return [one.path, "?" if one.step is None else f"{one.step:,}",
            "?" if one.tokens_seen is None else format_count(one.tokens_seen), one.model or "?",
            "?" if one.parameters is None else f"{one.parameters:,}", f"{one.bytes / 2**20:,.1f} MiB",
            "?" if one.parameters is None else "yes" if one.optimizer else "no", ranks,
            f"DAMAGED: {one.damage}" if one.damage else "whole"]

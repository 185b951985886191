"""`lit-cpt eval-data`: fetches the mirror of evaluation data, and checks it."""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

from lit_cpt.arguments import command_parser, divided, parse
from lit_cpt.harness.checking import check
from lit_cpt.harness.families import FAMILIES, LANGUAGES, PAPER_LANGUAGES
from lit_cpt.harness.fetching import fetch
from lit_cpt.harness.mirror import facts_of, needs, read_configs

DESCRIPTION = """Brings the data of MMLU, HellaSwag, HumanEval and MGSM to a folder that evaluations read without a
network (`fetch`, on a connected machine; then copy the folder), or says what of it is missing or changed (`check`)."""
CALLS = ("eval-data fetch --data eval-data", "eval-data check --data eval-data --families mmlu,mgsm")


def eval_data_command(arguments: list[str]) -> None:
    """`lit-cpt eval-data fetch` and `lit-cpt eval-data check`.

    Raises:
        ValueError: No such subcommand, family or language, or a mirror that is not whole.
    """
    deed, words = divided(arguments, {"fetch": "--data DIR", "check": "--data DIR"})
    parser = command_parser("eval-data fetch|check", DESCRIPTION, *CALLS)
    parser.add_argument("--data", type=str, required=True, metavar="DIR", help="Root of the mirror.")
    parser.add_argument("--families", type=str, default=",".join(FAMILIES), help="Which, separated by commas.")
    parser.add_argument("--languages", type=str, default=",".join(PAPER_LANGUAGES), help="Of MGSM, separated by "
                        f"commas, or all: {', '.join(LANGUAGES)}.")
    parser.add_argument("--from", type=str, metavar="FOLDER", help="fetch: copy from this mirror instead of the hub.")
    given = parse(parser, words)
    families = named(given["families"], tuple(FAMILIES), "family")
    languages = LANGUAGES if given["languages"] == "all" else named(given["languages"], LANGUAGES, "language")
    if deed == "check" and given["from"] is not None:
        raise ValueError(f"eval-data check --from {given['from']}: only fetch takes --from; check looks at --data.")
    if deed == "fetch":
        fetch(given["data"], repositories_of(families), languages=languages, source=given["from"])
    report(Path(given["data"]), families, languages)


def named(given: str, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    """The names in a comma-separated list.

    Raises:
        ValueError: One is not known.
    """
    names = tuple(dict.fromkeys(name for name in given.replace(" ", "").split(",") if name))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"there is no {what} {', '.join(unknown) or '(none given)'}; there are {', '.join(known)}.")
    return names


def repositories_of(families: tuple[str, ...]) -> list[str]:
    """What these families read."""
    return [name for one in families for name in FAMILIES[one].repositories]


def report(root: Path, families: tuple[str, ...], languages: tuple[str, ...]) -> None:
    """Print what is there and what is not.

    Raises:
        ValueError: The mirror is not whole.
    """
    rows, problems, broken = [], [], []
    for family in families:
        wrong = check(root, repositories_of((family,)), languages)
        counted = sizes(root, repositories_of((family,)), languages)
        rows.append([family, *counted, "not whole" if wrong else "whole"])
        problems += [f"{family}: {one}" for one in wrong]
        broken += [family] if wrong else []
    print(tabulate(rows, ["family", "documents", "files", ""], disable_numparse=True,
                   colalign=("left", "right", "right", "left")))
    if problems:
        few = [*problems[:10], *([f"... and {len(problems) - 10} more"] if len(problems) > 10 else [])]
        print("\n".join(["", *(f"! {one}" for one in few)]))
        spoken = "mgsm" in broken and languages != PAPER_LANGUAGES
        raise ValueError(f"{root} is not whole. On a connected machine: lit-cpt eval-data fetch --data {root} "
                         f"--families {','.join(broken)}" + (f" --languages {','.join(languages)}" if spoken else ""))


def sizes(root: Path, repositories: list[str], languages: tuple[str, ...]) -> list[str]:
    """Documents that would be asked, and files they and their worked examples lie in."""
    documents = files = 0
    for name in repositories:
        need = needs(languages)[name]
        try:
            chosen = {config: splits for config, splits in read_configs(root / name).items()
                      if config in (need.configs or (config,))}
            counted = [(split, facts_of(path)["rows"]) for splits in chosen.values()
                       for split in need.splits for path in splits.get(split, ())]
        except (OSError, ValueError):
            continue
        asked = "validation" if "validation" in need.splits else "test"
        documents += sum(rows for split, rows in counted if split == asked)
        files += len(counted)
    return [f"{documents:,}", str(files)]

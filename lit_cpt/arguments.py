"""Argument parsing that answers a mistake with the key, what is wrong, and the nearest right one. Torch-free."""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import re
from collections.abc import Mapping
from textwrap import fill
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Leaves the lines of a description as they are."""


def command_parser(command: str, description: str, *examples: str) -> ArgumentParser:
    """A parser that raises its errors instead of ending the process, and takes no abbreviations."""
    return ArgumentParser(prog=f"lit-cpt {command}", exit_on_error=False, allow_abbrev=False,
                          **help_of(command, description, *examples))


def help_of(command: str, description: str, *examples: str) -> dict[str, Any]:
    """What a command's ``--help`` begins with, as a parser takes it: a line, what it does, how it is called.

    Args:
        command: Its words, and perhaps those that it always takes.
        description: Sentences.
        examples: Words behind `lit-cpt`.
    """
    told = [fill(" ".join(description.split()), 100)] + (["", "Example:"] if examples else [])
    return {"usage": f"lit-cpt {command} [OPTIONS]", "formatter_class": HelpFormatter,
            "description": "\n".join([*told, *(f"  lit-cpt {example}" for example in examples)])}


def divided(arguments: list[str], usages: Mapping[str, str]) -> tuple[str, list[str]]:
    """What a command of several deeds is to do (empty where only its help is asked for), and the words behind it.

    Args:
        arguments: Beginning with the command's name.
        usages: Each deed and how it is used, such as ``{"check": "--data DIR"}``.

    Raises:
        ValueError: No such deed.
    """
    command, *words = arguments
    if words and words[0] in usages:
        return words[0], words[1:]
    if {"--help", "-h"}.isdisjoint(words):
        told = " and ".join(f"`lit-cpt {command} {deed} {usage}`" for deed, usage in usages.items())
        raise ValueError(f"{' '.join([command, *words[:1]])}: there {'are' if len(usages) > 1 else 'is only'} {told}.")
    return "", words


def parse(parser: ArgumentParser, arguments: list[str], build: bool = False) -> dict[str, Any]:
    """Parsed arguments by name.

    Args:
        parser: What is accepted.
        arguments: The command's, without its name.
        build: Make the objects that configs describe.

    Raises:
        ValueError: Something is not accepted; the message names the key and the cure.
    """
    try:
        settings = parser.parse_args(spelled_out(parser, arguments))
        return dict(vars(parser.instantiate_classes(settings) if build else settings))
    except (ArgumentError, argparse.ArgumentError) as error:
        raise ValueError(advised(str(error), known_keys(parser), parser.prog)) from None


def spelled_out(parser: ArgumentParser, arguments: list[str]) -> list[str]:
    """``arguments`` as jsonargparse wants them: ``--on-error`` as ``--on_error``, ``--flag`` as ``--flag true``."""
    flags = {f"--{action.dest}" for action in parser._actions if getattr(action, "_typehint", None) is bool}
    known, spelled = {f"--{key}" for key in known_keys(parser)}, []
    for argument, following in zip(arguments, [*arguments, "--"][1:], strict=True):
        name, equals, value = argument.partition("=")
        underscored = "--" + name[2:].replace("-", "_")
        name = underscored if underscored in known else name
        spelled += [name + equals + value]
        if name in flags and not equals and following.startswith("--"):
            spelled.append("true")
    return spelled


def known_keys(parser: ArgumentParser) -> list[str]:
    """Every key that ``parser`` accepts."""
    return [action.dest for action in parser._actions if action.dest != argparse.SUPPRESS]


def innermost(message: str) -> tuple[str, list[str]]:
    """Of a message about a class within classes, the part about the innermost, and what that accepts.

    The parser tells every reading it tried, from the outside in.
    """
    found = re.findall(r"given class_path '([\w.]+)': Option '([\w.+]+)' is not accepted", message)
    key = re.match(r'Parser key "([\w.]+)": ', message)
    if not key:
        return message, []
    if found:
        path, option = found[-1]
        module, _, name = path.rpartition(".")
        accepted = list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
        return f"{key[1]}: {name} takes no {option}; it takes {', '.join(accepted)}", accepted
    unknown = re.search(r"given class_path '[\w.]+': ([^:]*? has no .*?)\.? - ", message)
    if unknown is not None:
        return f"{key[1]}: {unknown[1]}", []
    return readings(message, key[1]), []


def readings(message: str, key: str) -> str:
    """What the parser tells of a value of the wrong type, in short; another message as it is.

    >>> readings("... Subtypes: [<class 'int'>, <class 'NoneType'>] Errors: ... Given value: many", "data.workers")
    'data.workers: expected int or null; given value: many'
    >>> readings("Expected a typing.Literal['jsonl', 'txt']. Got value: csv", "format")
    "format: expected 'jsonl' or 'txt'; given value: csv"
    """
    told = re.search(r"(?:Subtypes: \[(.*)\] Errors: .* Given|^[^-]*Expected an? (.*)\. Got) value: (.*)", message)
    if told is None:
        return message
    kinds = re.findall(r"<class '(?:\w+\.)*\w+'>|typing\.Literal\[[^]]*\]|[\w.]+\[[^]]*\]+", told[1] or told[2])
    kinds = [re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.*)\]", r"\1\2", kind) for kind in kinds]
    listed = " or ".join(kinds).replace("NoneType", "null").replace(", ", " or ")
    return f"{key}: expected {listed}; given value: {told[3]}" if listed else message


def mistyped(message: str) -> list[str]:
    """The keys that a parser's message calls unknown, and no other word of it.

    >>> mistyped("unrecognized arguments: --data.sorces x"), mistyped("Parser key 'data.seed': data is no number")
    (['data.sorces'], [])
    """
    words = message.partition("unrecognized arguments: ")[2]
    return [*re.findall(r"(?<!\S)--([\w.-]+)", words),
            *re.findall(r"(?:[Oo]ption '|takes no )([\w.]+)(?:'|;)", message)]


def advised(message: str, known: list[str], command: str) -> str:
    """A parser's message with the nearest known keys and where to read more.

    >>> advised("unrecognized arguments: --data.sorces x", ["data.sources"], "lit-cpt fit")
    'unrecognized arguments: --data.sorces x. Did you mean data.sources? `lit-cpt fit --help` lists what is accepted.'
    """
    message = " ".join(message.split()).rstrip(".")
    message, accepted = innermost(message)
    known = [*known, *accepted]
    near: dict[str, None] = {}
    for word in mistyped(message):
        word = word.replace("-", "_")
        begun = [key for key in known if key.startswith(word)]
        near.update(dict.fromkeys(difflib.get_close_matches(word, known, n=1, cutoff=0.8) or begun[:1]))
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    return f"{message}.{hint} `{command} --help` lists what is accepted."

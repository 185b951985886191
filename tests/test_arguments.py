from __future__ import annotations

import pytest

from lit_cpt.arguments import advised, command_parser, divided, known_keys, parse, spelled_out
from lit_cpt.recipe import Batch


def settle(sources: dict[str, str], on_error: str = "fail", overwrite: bool = False,
           workers: int | None = None) -> None:
    """A command as the others are written.

    Args:
        sources: Folders by name.
        on_error: What to do.
        overwrite: Start anew.
        workers: Processes.
    """


@pytest.fixture
def parser():
    made = command_parser("settle", " Settles things. ")
    made.add_function_arguments(settle, as_group=False)
    return made


def test_arguments_come_back_by_name_with_their_defaults(parser):
    given = parse(parser, ["--sources", "{a: x}", "--workers", "3"])
    assert given == {"sources": {"a": "x"}, "on_error": "fail", "overwrite": False, "workers": 3}


def test_a_dash_may_stand_for_an_underscore_with_a_space_or_an_equals_sign(parser):
    assert parse(parser, ["--sources.a", "x", "--on-error", "skip"])["on_error"] == "skip"
    assert parse(parser, ["--sources.a", "x", "--on-error=skip"])["on_error"] == "skip"


def test_a_dash_in_a_value_stays_a_dash(parser):
    given = parse(parser, ["--sources.my-source", "a-folder", "--on-error=on-error"])
    assert (given["sources"], given["on_error"]) == ({"my-source": "a-folder"}, "on-error")


@pytest.mark.parametrize(("arguments", "value"), [
    (["--overwrite", "--workers", "2"], True), (["--workers", "2", "--overwrite"], True),
    (["--overwrite", "false"], False), (["--overwrite=false"], False), ([], False)])
def test_a_flag_needs_no_value_wherever_it_stands(parser, arguments, value):
    assert parse(parser, ["--sources.a", "x", *arguments])["overwrite"] is value


def test_no_arguments_at_all_are_spelled_out_as_none(parser):
    assert spelled_out(parser, []) == []


def test_objects_are_built_on_request():
    parser = command_parser("train", "Trains.")
    parser.add_class_arguments(Batch, "batch")
    arguments = ["--batch.sequence_length", "8", "--batch.global_batch", "4"]
    assert parse(parser, arguments, build=True)["batch"] == Batch(8, 4)
    assert not isinstance(parse(parser, arguments)["batch"], Batch)


def test_every_key_is_known(parser):
    assert {"sources", "on_error", "overwrite", "workers"} <= set(known_keys(parser))


@pytest.mark.parametrize(("arguments", "message"), [
    (["--sorces", "x"], r"unrecognized arguments: --sorces x. Did you mean sources\? `lit-cpt settle --help`"),
    (["--sources.a", "x", "--workers", "many"], r"workers: expected int or null; given value: many. `lit-cpt settle"),
    (["--sources.a", "x", "--overwrite", "maybe"], r"overwrite.*maybe"),
    (["--sources", "3"], r"sources"),
    ([], "the following arguments are required: sources"),
    (["--sources.a", "x", "stray"], "unrecognized arguments: stray"),
    (["--sources.a", "x", "--workers"], "--workers: expected one argument")])
def test_a_mistake_is_a_value_error_that_names_key_and_cure(parser, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(parser, arguments)
    assert "\n" not in str(caught.value)


def test_help_is_no_mistake(parser, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(parser, ["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "usage: lit-cpt settle" in shown
    assert "Settles things." in shown


@pytest.mark.parametrize(("words", "near"), [
    ("--data.sorces\n   x --data.sorces y", "Did you mean data.sources?"), ("--data-sed 3", "Did you mean data.seed?"),
    ("--data.so x", "Did you mean data.sources?"), ("--zzz x", None), ("data.sorces", None)])
def test_advice_names_the_nearest_key_once_and_nothing_where_none_is_near(words, near):
    said = advised(f"unrecognized arguments: {words}", ["data.sources", "data.seed"], "lit-cpt fit")
    told = f"unrecognized arguments: {' '.join(words.split())}."
    assert said == " ".join(filter(None, [told, near, "`lit-cpt fit --help` lists what is accepted."]))


def test_a_word_of_a_message_that_is_no_key_is_not_advised():
    assert "Did you mean" not in advised("argument data: expected one argument, dat", ["data", "date"], "x")


def test_an_abbreviation_is_refused_with_what_it_may_mean(parser):
    with pytest.raises(ValueError, match=r"unrecognized arguments: --over. Did you mean overwrite\?"):
        parse(parser, ["--sources.a", "x", "--over"])


def test_help_begins_with_usage_what_is_done_and_examples():
    shown = command_parser("settle", "Settles. " * 20, "settle --all", "settle --none").format_help().splitlines()
    assert shown[0] == "usage: lit-cpt settle [OPTIONS]"
    assert shown[shown.index("Example:") + 1:][:2] == ["  lit-cpt settle --all", "  lit-cpt settle --none"]
    assert max(map(len, shown)) <= 100


def test_a_key_that_is_right_is_not_advised():
    assert "Did you mean" not in advised("data.seed: expected int", ["data.seed", "data.seeds"], "x")


def test_a_command_of_several_deeds_is_divided_into_deed_and_words():
    usages = {"fetch": "--data DIR", "check": "--data DIR"}
    assert divided(["eval-data", "check", "--data", "x"], usages) == ("check", ["--data", "x"])
    assert divided(["eval-data", "--help"], usages) == ("", ["--help"])
    assert divided(["eval-data", "fetch", "-h"], usages) == ("fetch", ["-h"])


@pytest.mark.parametrize(("words", "usages", "said"), [
    (["burn", "x"], {"a": "X", "b": "Y"}, "^data burn: there are `lit-cpt data a X` and `lit-cpt data b Y`.$"),
    ([], {"a": "X"}, "^data: there is only `lit-cpt data a X`.$")])
def test_another_deed_is_refused_with_those_there_are(words, usages, said):
    with pytest.raises(ValueError, match=said):
        divided(["data", *words], usages)

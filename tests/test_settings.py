from __future__ import annotations

import pytest

from lit_cpt.settings import SHIPPED, expand_configs, find_config, merged, options, read_config


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_config_is_found_by_its_path(here):
    (here / "mine.yaml").write_text("data: {}")
    assert find_config("mine.yaml").samefile(here / "mine.yaml")
    assert find_config(str(here / "mine.yaml")) == here / "mine.yaml"


@pytest.mark.parametrize("name", ["base", "base.yaml", "recipes/paper", "hardware/cpu"])
def test_a_config_that_lit_cpt_ships_is_found_by_name_from_anywhere(here, name):
    assert find_config(name) == SHIPPED / f"{name.removesuffix('.yaml')}.yaml"


def test_a_file_of_ones_own_goes_before_a_shipped_one(here):
    (here / "base.yaml").write_text("trainer: {}")
    assert find_config("base.yaml").samefile(here / "base.yaml")


def test_a_folder_is_no_config(here):
    (here / "recipes").mkdir()
    with pytest.raises(FileNotFoundError, match="--config recipes: that is a folder; name a file in it"):
        find_config("recipes")


def test_a_name_that_is_nowhere_is_answered_with_the_names_there_are(here):
    with pytest.raises(FileNotFoundError, match="--config recipes/papr: .*base, hardware/cpu, .*recipes/paper,"):
        find_config("recipes/papr")


def test_configs_on_a_command_line_become_paths_and_the_rest_stays(here):
    (here / "mine.yaml").write_text("data: {}")
    argv = ["fit", "--config", "base", "--config=recipes/paper", "-c", "mine.yaml", "--run", "base", "--data.seed=1"]
    assert expand_configs(argv) == ["fit", "--config", str(SHIPPED / "base.yaml"),
                                    f"--config={SHIPPED / 'recipes/paper.yaml'}", "-c", "mine.yaml", "--run", "base",
                                    "--data.seed=1"]


def test_a_config_that_was_forgotten_is_left_to_the_parser(here):
    assert expand_configs(["--config", "--run", "x"]) == ["--config", "--run", "x"]


def test_a_config_is_read_as_a_mapping(here):
    (here / "mine.yaml").write_text("recipe: {token_horizon: 300B}\n")
    assert read_config("mine.yaml") == {"recipe": {"token_horizon": "300B"}}


@pytest.mark.parametrize(("content", "message"), [
    (b"recipe: [1", "mine.yaml is not YAML in UTF-8: .*expected ',' or ']'"),
    (b"recipe: {name: \xff}", "mine.yaml is not YAML in UTF-8: .*0xff"),
    (b"- a", "mine.yaml holds .'a'.; write a mapping such as `recipe: {...}`"),
    (b"", "mine.yaml holds nothing; write a mapping")])
def test_a_config_that_cannot_be_read_is_named(here, content, message):
    (here / "mine.yaml").write_bytes(content)
    for read in (read_config, lambda name: expand_configs(["--config", name])):
        with pytest.raises(ValueError, match=message) as caught:
            read("mine.yaml")
        assert "\n" not in str(caught.value)


# Options and merged configs --------------------------------------------------------------------------------


def test_options_keep_the_words_they_were_written_in():
    words = ["stray", "--json", "--config", "a.yaml", "-c", "b.yaml", "--data.seed=3", "--trainer.devices", "-1"]
    found = list(options(words))
    assert [(key, value) for key, value, _ in found] == [
        ("", None), ("json", None), ("config", "a.yaml"), ("config", "b.yaml"), ("data.seed", "3"),
        ("trainer.devices", "-1")]
    assert [word for _, _, written in found for word in written] == words


def test_configs_and_options_are_merged_in_their_order(here):
    (here / "one.yaml").write_text("run: there\ntrainer: {devices: 1, callbacks: [A, {class_path: B}]}")
    (here / "two.yaml").write_text("trainer: {callbacks+: [{class_path: C, init_args: {x: 1}}], max_time: 00:01}")
    given = ["--config", "one.yaml", "--trainer.devices", "2", "--config=two.yaml",
             "--trainer.callbacks.init_args.y=0.5", "--trainer.callbacks+", "D", "--trainer.callbacks.z", "true",
             "--trainer.fast_dev_run"]
    assert merged(given) == {"run": "there", "trainer": {
        "devices": 2, "max_time": "00:01", "fast_dev_run": True, "callbacks": [
            "A", {"class_path": "B"}, {"class_path": "C", "init_args": {"x": 1, "y": 0.5}},
            {"class_path": "D", "z": True}]}}


def test_a_later_list_replaces_and_an_append_needs_no_list_before_it(here):
    (here / "one.yaml").write_text("trainer: {callbacks+: [A]}")
    (here / "two.yaml").write_text("trainer: {callbacks: [B]}")
    assert merged(["--config", "one.yaml"]) == {"trainer": {"callbacks": ["A"]}}
    assert merged(["--config", "one.yaml", "--config", "two.yaml"]) == {"trainer": {"callbacks": ["B"]}}

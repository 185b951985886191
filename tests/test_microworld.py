from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lit_cpt.microworld import FAMILIES, CodeProbe, Proportions, World, write_corpora, write_model_config
from lit_cpt.microworld.entities import QUESTIONS
from lit_cpt.microworld.interpreter import run_program
from lit_cpt.microworld.probes import ChoiceProbe, NumberProbe
from lit_cpt.microworld.real_text import real_text
from lit_cpt.microworld.tokenizer import train_tokenizer

SMALL = Proportions(
    entities=24, activities=6, web=1500, books=400, code=300, multi=900, qa_problems=20, qa_programs=10,
    code_probes=24, largest_first=6, largest_second=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def full():
    return World(0)


@pytest.fixture(scope="module")
def small():
    return World(0, SMALL)


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    """A folder with the small world's tokenizer and model config, as a Hugging Face folder has both."""
    folder = tmp_path_factory.mktemp("small")
    tokenizer = train_tokenizer(small, folder, vocabulary_size=600)
    write_model_config(folder, len(tokenizer))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def digest(texts) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def fingerprints(world: World) -> dict[str, str]:
    probes = {
        f"{family} probes": digest(repr(dataclasses.astuple(probe)) for probe in probes)
        for family, probes in world.probes.items()
    }
    documents = {source: digest(texts) for source, texts in world.documents.items()}
    return {**documents, "held_out_qa": digest(world.held_out_qa), **probes}


PREREGISTERED_SEED_0 = {
    "web": "7409812d16dd841f",
    "books": "2538ece36b9ae63e",
    "code": "1820992173212597",
    "multi": "fdb794665d1d5f7f",
    "qa": "8455bf449ec9404d",
    "held_out_qa": "4d90b96570756576",
    "knowledge probes": "3bab7c8efe320e77",
    "completion probes": "33ccec4b23a0975d",
    "code probes": "19f4c6e06430f989",
    "math probes": "8e555ee4e6869a90",
    "transfer probes": "5ab449826dd9083f",
}
PREREGISTERED_IDS = "a6ef98a0a7494d9b"


def test_seed_0_is_the_preregistered_world(full):
    assert fingerprints(full) == PREREGISTERED_SEED_0


def test_sizes_are_the_preregistered_ones(full):
    assert {source: len(texts) for source, texts in full.documents.items()} == {
        "web": 45_000, "books": 12_000, "code": 12_000, "multi": 24_000, "qa": 432,
    }  # fmt: skip
    assert {family: len(probes) for family, probes in full.probes.items()} == {
        "knowledge": 200, "completion": 288, "code": 160, "math": 270, "transfer": 78,
    }  # fmt: skip
    assert len({probe.cluster for probe in full.probes["math"]}) == 135
    assert set(FAMILIES) | {"transfer"} == set(full.probes)


def test_one_seed_is_one_world_and_another_seed_another(small):
    same, other = fingerprints(World(0, SMALL)), fingerprints(World(1, SMALL))
    assert same == fingerprints(small)
    assert all(other[name] != same[name] for name in same)


def test_no_training_document_of_the_full_world_gives_a_probe_away(full):
    assert full.contamination() == []


def test_held_out_people_are_known_from_books_and_asked_about_nowhere(full):
    questions = [
        form.format(name=name) for name in full.entities.test for forms in QUESTIONS.values() for form in forms
    ]
    assert len(questions) == 200 * 8
    asking = [text for texts in full.documents.values() for text in texts if "?" in text]
    asking = "\0".join(asking + full.held_out_qa)
    assert [question for question in questions if question in asking] == []
    for source in ("qa", "held_out_qa"):
        text = "\0".join(full.held_out_qa if source == "held_out_qa" else full.documents["qa"])
        assert [name for name in full.entities.test if name in text] == []
    books = "\0".join(full.documents["books"])
    assert all(name in books for name in full.entities.test)


@pytest.mark.parametrize("family", ["knowledge", "completion", "code", "math", "transfer"])
@pytest.mark.parametrize("source", ["web", "qa"])
def test_a_planted_leak_is_found(family, source):
    world = World(0, SMALL)
    assert world.contamination() == []
    probe = world.probes[family][0]
    world.documents[source].append(f"Somebody wrote: {probe.traces[-1]} And so on.")
    assert f"{family}: {probe.prompt}" in world.contamination()


def test_a_leak_in_another_wording_is_found():
    world = World(0, SMALL)
    name = world.entities.test[0]
    program, story = world.probes["code"][0], world.probes["math"][0]
    world.documents["web"] += [
        f"Question: What is the favourite food of {name}?\nAnswer: rice",
        "def renamed(" + (program.prompt + program.reference).split("(", 1)[1],
        story.traces[0] + " Nobody asks.",
    ]
    leaks = world.contamination()
    assert sorted(leak.split(":")[0] for leak in leaks) == ["code", "knowledge", "math"]
    assert any(name in leak for leak in leaks)


def test_held_out_qa_is_text_of_the_same_kind_that_training_lacks(small):
    assert small.held_out_qa
    assert not set(small.held_out_qa) & set(small.documents["qa"])
    traces = {trace for probes in small.probes.values() for probe in probes for trace in probe.traces}
    assert [trace for trace in traces if any(trace in text for text in small.held_out_qa)] == []


def test_real_text_is_one_more_source_and_changes_nothing_else(small):
    with_real = World(0, SMALL, with_real_text=True)
    assert list(with_real.documents) == [*small.documents, "real"]
    assert len(with_real.documents["real"]) > 1000
    assert all(text.isascii() for text in with_real.documents["real"])
    with_real.documents.pop("real")
    assert fingerprints(with_real) == fingerprints(small)


def test_a_python_without_help_texts_is_told_apart(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data", None)
    with pytest.raises(ImportError, match="with_real_text=False"):
        real_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"entities": 3}, "entities=3: accepted are 4 to 1000"),
        ({"activities": 3}, "activities=3: accepted are 6 to 144"),
        ({"activities": 7}, "activities=7: .* multiple of 3"),
        ({"web": -1}, "web=-1"),
        ({"web_noise": 1.5}, r"web_noise=1\.5"),
        ({"held_out_sums": 0.9}, r"held_out_sums=0\.9: accepted are 0\.0 to 0\.5"),
        ({"web_questions": 0.1}, r"web_questions=0\.1"),
    ],
)
def test_a_world_that_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Proportions(**given)


def test_the_smallest_world_can_be_built():
    least = Proportions(
        entities=4, activities=6, web=10, books=3, code=3, multi=3, qa_problems=1, qa_programs=1,
        code_probes=0, largest_first=5, largest_second=2, held_out_entities=0.0,
    )  # fmt: skip
    world = World(3, least)
    assert world.probes["knowledge"] == world.probes["code"] == []
    assert world.contamination() == []


# Answers


def oracle_text(probe: CodeProbe | NumberProbe) -> str:
    return probe.reference if isinstance(probe, CodeProbe) else f" {probe.answer}"


@pytest.mark.parametrize("family", ["code", "math", "transfer"])
def test_the_right_text_is_right_and_silence_is_not(full, family):
    assert all(probe.grade(oracle_text(probe)) for probe in full.probes[family])
    assert all(probe.grade(oracle_text(probe) + "\n" + oracle_text(probe)) for probe in full.probes[family])
    assert not any(probe.grade("") for probe in full.probes[family])


def test_a_function_begun_after_the_answer_is_not_read(full):
    assert all(probe.grade(probe.reference + "def g(ite") for probe in full.probes["code"])
    assert not any(probe.grade(probe.reference + "    otherwi se") for probe in full.probes["code"])


def test_only_the_first_number_of_the_first_line_counts():
    probe = NumberProbe("", 7, "", ())
    assert [probe.grade(text) for text in (" 7", "about 7.", " 7 or 8")] == [1, 1, 1]
    assert [probe.grade(text) for text in (" 77", " 8 7", "\n 7", "seven")] == [0, 0, 0, 0]


def test_the_best_constant_number_reaches_14_percent(full):
    answers: dict[str, Counter[int]] = {}
    for probe in full.probes["math"]:
        answers.setdefault(probe.cluster[:5], Counter())[probe.answer] += 1
    best = sum(counts.most_common(1)[0][1] for counts in answers.values())
    assert len(answers) == 3
    assert best / len(full.probes["math"]) == pytest.approx(0.141, abs=5e-4)


@pytest.mark.parametrize("family", ["knowledge", "completion"])
def test_no_position_is_right_more_often_than_chance_allows(full, family):
    probes = full.probes[family]
    shares = Counter(probe.answer for probe in probes)
    assert all(0.15 < shares[position] / len(probes) < 0.35 for position in range(4))
    assert all(probe.options.count(probe.options[probe.answer]) == 1 for probe in probes)


@pytest.mark.parametrize("constant", ["\n    return 0\n", "\n    return x\n", "\n    return len(xs)\n"])
def test_a_constant_program_passes_hardly_ever(full, constant):
    assert sum(probe.grade(constant) for probe in full.probes["code"]) <= 3


def test_options_are_compared_by_their_scores_and_ties_go_to_the_first():
    probe = ChoiceProbe("", ("a", "b", "c"), 1, "", ())
    assert [probe.grade(scores) for scores in ([0, 1, 0], [1, 1, 0], [0, 0, 1])] == [1, 0, 0]


# Generated programs


def test_references_compute_what_python_computes(full):
    for probe in full.probes["code"]:
        names: dict = {}
        exec(probe.prompt + probe.reference, names)
        expected = [names[probe.function](argument) for argument in probe.arguments]
        assert run_program(probe.prompt + probe.reference, probe.function, probe.arguments) == expected


@pytest.mark.parametrize(
    "body",
    [
        "__import__('os').system('true')",
        "().__class__.__base__.__subclasses__()",
        "x.real",
        "open('/etc/passwd').read()",
        "eval('1')",
        "(lambda: f(x))()",
        "f(x)",
        "9 ** 9 ** 9 ** 9",
        "1 << 99999999",
        "[1] * 999999999",
        "'a' * 999999999",
        "[y for y in range(10 ** 12)]",
        "(y := x)",
        "max(*[x])",
        "sorted([x], key=abs)",
        "x if x else 1",
        "x / 1",
        "print",
        "True",
        "-" * 1500 + "x",
        "(" * 300 + "x" + ")" * 300,
        "x" + " " * 3000,
        "\0",
        "",
    ],
)
def test_anything_but_small_arithmetic_is_refused(body):
    assert run_program(f'def f(x):\n    """Doc."""\n    return {body}\n', "f", [2]) is None


@pytest.mark.parametrize(
    "source",
    [
        "import os\ndef f(x):\n    return x\n",
        "def f(x):\n    while True: pass\n",
        "def f(x):\n    import os\n    return x\n",
        "def f(x):\n    x = 1\n    return x\n",
        "def f(x):\n    return x\nf(1)\n",
        "def f(x=open('/etc/passwd')):\n    return x\n",
        "@print\ndef f(x):\n    return x\n",
        "def f(x) -> print(1):\n    return x\n",
        "def f(x: print(1)):\n    return x\n",
        "def f(*x):\n    return x\n",
        "def f(x, y):\n    return 2\n",
        "def f():\n    return 2\n",
        "def f(x=1):\n    return 2\n",
        "def g(x):\n    return x\n",
        "async def f(x):\n    return x\n",
        "class f: pass\n",
        "not python",
        "",
    ],
)
def test_anything_but_one_plain_return_is_refused(source):
    assert run_program(source, "f", [2]) is None


@pytest.mark.parametrize(
    ("body", "argument", "result"),
    [
        ("(x + 3) * -2", 5, -16),
        ("max(x, 4) - abs(-x)", 2, 2),
        ("x[0] * x[-1]", [3, 1, 7, 2], 6),
        ("sorted(x)[1] + len(x) + sum(x) + min(x)", [3, 1, 7, 2], 20),
        ("sorted(x, reverse=1)[0]", [1, 3], None),
        ("x[9]", [1], None),
        ("x[0]", 1, None),
        ("x + 1", [1], None),
        ("x * 1000000", [1], None),
        ("max(x)", 1, None),
        ("max(x)", [], None),
    ],
)
def test_small_arithmetic_is_computed_and_its_failures_are_no_answers(body, argument, result):
    answer = run_program(f"def f(x):\n    return {body}\n", "f", [argument])
    assert answer == (None if result is None else [result])


# Files


def test_a_tokenizer_folder_loads_again_with_end_of_text_first(small, tokenizer):
    assert tokenizer.eos_token == "<eos>"
    assert tokenizer.eos_token_id == 0
    assert len(tokenizer) == 600
    texts = [texts[0] for texts in small.documents.values()] + small.documents["multi"][:20]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode(ids) for ids in encoded] == texts
    assert tokenizer(texts)["input_ids"] == encoded


def test_the_full_tokenizer_is_the_preregistered_one(full, tmp_path):
    tokenizer = train_tokenizer(full, tmp_path)
    assert len(tokenizer) == 1536
    ids = tokenizer([texts[index] for texts in full.documents.values() for index in range(200)])["input_ids"]
    assert digest(" ".join(map(str, row)) for row in ids) == PREREGISTERED_IDS
    name = full.entities.given_names[0]
    assert len(tokenizer(f"Question: Where does {name}")["input_ids"]) <= 8


def test_a_vocabulary_without_room_for_bytes_is_refused(small, tmp_path):
    with pytest.raises(ValueError, match="vocabulary_size=256"):
        train_tokenizer(small, tmp_path, vocabulary_size=256)


def read(path):
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_corpora_hold_every_document_once(small, tmp_path):
    paths = write_corpora(small, tmp_path / "new" / "folder")
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {
        "web.jsonl", "books.jsonl", "code.jsonl", "multi.jsonl", "qa.jsonl", "qa_held_out.jsonl",
    }  # fmt: skip
    assert all(read(paths[source]) == texts for source, texts in small.documents.items())
    assert read(paths["qa_held_out"]) == small.held_out_qa
    assert "りんご" in paths["multi"].read_text(encoding="utf-8")


def test_corpora_can_keep_the_last_documents_back(small, tmp_path):
    paths = write_corpora(small, tmp_path, held_out_share=0.03)
    assert len(read(paths["web_held_out"])) == 45
    assert read(paths["web"]) + read(paths["web_held_out"]) == small.documents["web"]
    assert read(paths["qa"]) == small.documents["qa"]
    assert read(paths["qa_held_out"]) == small.held_out_qa
    with pytest.raises(ValueError, match="held_out_share=1"):
        write_corpora(small, tmp_path, held_out_share=1)


def test_the_model_config_is_the_preregistered_shape(tmp_path):
    write_model_config(tmp_path, 1536)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.model_type, config.vocab_size) == ("llama", 1536)
    assert config.eos_token_id == config.bos_token_id == 0
    assert config.rope_parameters["rope_theta"] == 10000
    model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 479_904
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with pytest.raises(ValueError, match="vocab_size=0"):
        write_model_config(tmp_path, 0)

"""What lm-eval and the models it asks do where lit_cpt counts on it or works around it."""

from __future__ import annotations

import inspect
from pathlib import Path

import lm_eval
import pytest
import yaml
from contract import relied_on, worked_around
from lm_eval.utils import apply_template, env
from transformers import AutoModelForCausalLM, LlamaConfig

from lit_cpt.harness.network import CACHE_NAMES

TASKS = Path(lm_eval.__file__).parent / "tasks"


def test_a_template_is_compiled_anew_for_every_document(monkeypatch):
    seen = []
    compiled = type(env).from_string
    monkeypatch.setattr(env, "from_string", lambda text: seen.append(text) or compiled(env, text), raising=False)
    with worked_around("lit_cpt/harness/tasks.py", "compiled_templates"):
        for row in range(3):
            apply_template("{{row}}", {"row": row})
        assert len(seen) == 3


def test_humaneval_asks_the_hub_for_its_metric_when_it_is_imported():
    with worked_around("lit_cpt/harness/tasks.py", "local_data stands in for evaluate.load while tasks are loaded"):
        text = (TASKS / "humaneval" / "utils.py").read_text()
        assert 'load("code_eval")' in text
        assert "unsafe_code: true" in (TASKS / "humaneval" / "humaneval.yaml").read_text()


def test_mgsm_names_no_room_for_an_answer():
    with worked_around("lit_cpt/harness/families.py", "max_gen_toks=512: lm-eval's default of 256 cuts Thai answers"):
        assert "max_gen_toks" not in (TASKS / "mgsm" / "native_cot" / "mgsm_native_cot_th.yaml").read_text()
        assert "max_gen_toks" not in (TASKS / "mgsm" / "native_cot" / "cot_yaml").read_text()


def test_japanese_exemplars_lose_their_first_character():
    with worked_around("docs/evaluation.md", "it says that upstream's prompt is kept as it is"):
        task = yaml.safe_load((TASKS / "mgsm" / "native_cot" / "mgsm_native_cot_ja.yaml").read_text())
        assert "answer[11:]" in task["doc_to_target"]
        assert len("ステップごとの答え：") == 10


def test_mmlu_leaves_its_shots_open():
    with relied_on("lit_cpt/harness/families.py", "a family's shots are set on each of its tasks"):
        template = (TASKS / "mmlu" / "default" / "_default_template_yaml").read_text()
        assert "num_fewshot:" not in template
        assert "first_n" in template


def test_a_model_takes_its_keys_and_values_by_a_name_that_we_know():
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    taken = inspect.signature(AutoModelForCausalLM.from_config(config).forward).parameters
    with relied_on("lit_cpt/harness/network.py", "keys and values are handed in under one of CACHE_NAMES"):
        assert any(name in taken for name in CACHE_NAMES)
        assert "logits_to_keep" in taken


@pytest.mark.parametrize("family", ["mmlu/default/_mmlu.yaml", "hellaswag/hellaswag.yaml", "humaneval/humaneval.yaml",
                                    "mgsm/native_cot/mgsm_native_cot_es.yaml"])
def test_the_four_families_are_where_we_look_for_them(family):
    with relied_on("lit_cpt/harness/tasks.py", "the small index reads four folders instead of all"):
        assert (TASKS / family).is_file()

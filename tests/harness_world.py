"""A small evaluation world: a generated mirror of the four families, a tokenizer, models, scripted sandboxes."""

from __future__ import annotations

import json
import os
import random
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from lit_cpt.harness import FAMILIES, Family
from lit_cpt.harness.mirror import mmlu_subjects, write_manifest

SUBJECTS = ("anatomy", "astronomy", "virology")
WORDS = ["red", "blue", "cat", "dog", "sun", "moon", "runs", "sleeps", "over", "under", "seven", "eight", "house",
         "river", "stone", "glass"]
LANGUAGES = {"es": ("Pregunta: ", "Respuesta paso a paso: ", "La respuesta es {}."),
             "ja": ("問題：", "ステップごとの答え：", "答えは{}です。"),
             "th": ("โจทย์: ", "คำตอบทีละขั้นตอน: ", "คำตอบคือ {}")}

MMLU = Family("mmlu", tuple(f"mmlu_{name}" for name in SUBJECTS), shots=5, repositories=("cais/mmlu",))
HELLASWAG = FAMILIES["hellaswag"]
HUMANEVAL = Family("humaneval", ("humaneval",), shots=0, max_gen_toks=24, gold="canonical_solution",
                   repositories=("openai/openai_humaneval",))
MGSM = Family("mgsm", FAMILIES["mgsm"].tasks, shots=8, max_gen_toks=12, repositories=("juletxara/mgsm",))
SMALL = [MMLU, HELLASWAG, HUMANEVAL, MGSM]


def sentence(rng: random.Random, length: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(length))


def write_repository(root: Path, name: str, configs: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Parquet files and the README that names them."""
    listed = []
    for config, splits in configs.items():
        for split, rows in splits.items():
            path = root / name / config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), path)
        listed.append({"config_name": config, "data_files": [{"split": split, "path": f"{config}/{split}-*"}
                                                             for split in splits]})
    (root / name / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': listed})}---\n# {name}\n")


def mmlu_rows(rng: random.Random, count: int) -> list[dict[str, Any]]:
    return [{"question": sentence(rng, rng.randint(4, 12)) + "?", "subject": "x",
             "choices": [sentence(rng, rng.randint(1, 4)) for _ in range(4)], "answer": rng.randrange(4)}
            for _ in range(count)]


def hellaswag_rows(rng: random.Random, count: int) -> list[dict[str, Any]]:
    return [{"ind": row, "activity_label": sentence(rng, 2), "ctx_a": sentence(rng, rng.randint(4, 9)) + ".",
             "ctx_b": sentence(rng, 2), "ctx": "", "endings": [sentence(rng, rng.randint(2, 7)) for _ in range(4)],
             "source_id": "x", "split": "val", "split_type": "zeroshot", "label": str(rng.randrange(4))}
            for row in range(count)]


def humaneval_rows(count: int) -> list[dict[str, Any]]:
    return [{"task_id": f"HumanEval/{row}", "entry_point": f"add_{row}",
             "prompt": f'def add_{row}(x):\n    """Return x plus {row}."""\n',
             "canonical_solution": f"    return x + {row}\n",
             "test": f"def check(candidate):\n    assert candidate(2) == {row + 2}\n"} for row in range(count)]


def mgsm_rows(rng: random.Random, language: str, count: int, shots: bool) -> list[dict[str, Any]]:
    question, answer, closing = LANGUAGES[language]
    rows = []
    for _ in range(count):
        number, text = rng.randint(2, 99), sentence(rng, rng.randint(4, 8)) + "?"
        rows.append({"question": question + text if shots else text,
                     "answer": f"{answer}{sentence(rng, 4)}. {closing.format(number)}" if shots else None,
                     "answer_number": number, "equation_solution": None})
    return rows


def build_mirror(root: Path, subjects: tuple[str, ...] = SUBJECTS, documents: int = 6) -> Path:
    """A mirror with a few documents of everything."""
    rng = random.Random(7)
    write_repository(root, "cais/mmlu", {name: {"dev": mmlu_rows(rng, 5), "test": mmlu_rows(rng, documents)}
                                         for name in subjects})
    write_repository(root, "Rowan/hellaswag", {"default": {"train": hellaswag_rows(rng, 2),
                                                           "validation": hellaswag_rows(rng, documents)}})
    write_repository(root, "openai/openai_humaneval", {"openai_humaneval": {"test": humaneval_rows(documents)}})
    write_repository(root, "juletxara/mgsm", {language: {"train": mgsm_rows(rng, language, 8, True),
                                                         "test": mgsm_rows(rng, language, documents, False)}
                                              for language in LANGUAGES})
    write_manifest(root, ["cais/mmlu", "Rowan/hellaswag", "openai/openai_humaneval", "juletxara/mgsm"])
    return root


def whole_mirror(root: Path) -> Path:
    """One with all 57 subjects."""
    return build_mirror(root, mmlu_subjects(), documents=1)


def build_tokenizer(folder: Path, pad: bool = True, bos: bool = True, texts: list[str] | None = None,
                    size: int = 512) -> Any:
    """A byte-level tokenizer of ``size`` tokens; ``pad`` and ``bos`` say which special tokens it has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(3)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    usual = [f"{sentence(rng, 12)}\nAnswer: A B C D. def return assert" for _ in range(200)]
    backend.train_from_iterator(texts or usual, trainer)
    names = {"eos_token": "</s>", **({"pad_token": "<pad>"} if pad else {}), **({"bos_token": "<s>"} if bos else {})}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    made.save_pretrained(folder)
    return made


def build_model(window: int = 2048, seed: int = 0, kind: str = "llama", **settings: Any) -> Any:
    """A tiny causal LM with sharp random weights, so that argmaxes are no matter of rounding."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{
        "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": window,
        "initializer_range": 0.4, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, **settings})
    return AutoModelForCausalLM.from_config(config)


class Trusting:
    """Runs programs right here, without any wall: for the tests' own programs only."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def submit(self, candidate: str, test: str, prompt: str = "", entry_point: str = "") -> Future[Any]:
        self.seen.append(candidate)
        future: Future[Any] = Future()
        try:
            exec(compile(f"{candidate}\n{test}", "<candidate>", "exec"), {})
            future.set_result(SimpleNamespace(passed=True, reason="ok"))
        except BaseException as error:
            future.set_result(SimpleNamespace(passed=False, reason=f"failed: {error!r}"))
        return future


def join(rank: int, size: int, folder: str) -> None:
    """Make this process rank ``rank`` of a gloo group that meets in ``folder``."""
    import torch.distributed as dist

    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)


def save(folder: str, name: str, value: Any) -> None:
    Path(folder, name).write_text(json.dumps(value))


def requests_of(kept: Any, family: str) -> Any:
    """The requests of a family that an evaluation left."""
    return next(requests for (name, _), (_, requests) in kept.requests.kept.items() if name == family)

"""Evaluation on real tasks: CPU seconds of lm-eval's own HFLM over ours, on the same model and requests.

Arms take turns in one process. Both get the same rendered requests; HFLM's figure has its tokenising, ours too (each
round begins with nothing kept). The model is random, with its end-of-text token raised at pseudo-random places, so
that answers end after different lengths, as a trained model's do; HFLM stops such rows one by one, too. Prints the
accuracy of both beside the times: they must agree.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from lm_eval.models.huggingface import HFLM
from measure import alternate, parser, ratios, show, write
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lit_cpt.harness import FAMILIES, Family
from lit_cpt.harness.encoder import Encoder
from lit_cpt.harness.evaluation import give
from lit_cpt.harness.guard import eval_guard
from lit_cpt.harness.language_model import LiveLM
from lit_cpt.harness.mirror import mmlu_subjects
from lit_cpt.harness.network import Network
from lit_cpt.harness.ranks import Ranks
from lit_cpt.harness.requests import GENERATES, FamilyRequests, RequestStore, render, task_documents
from lit_cpt.harness.scoring import score_family
from lit_cpt.harness.tasks import load_tasks

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SUBJECTS, HFLM_BATCH, SEED = 20, 8, 1234
MEAN_LENGTH = 80  # tokens of an answer, about
WINDOW = 8192
KINDS = ("loglikelihood", GENERATES)


class Ending(LlamaForCausalLM):
    """A Llama that ends its text, at places that depend on the last token and its position only."""

    def forward(self, input_ids: Any = None, position_ids: Any = None, **settings: Any) -> Any:
        """Raise the end's logit in a step of decoding."""
        found = super().forward(input_ids=input_ids, position_ids=position_ids, **settings)
        if position_ids is not None and input_ids.shape[1] == 1:
            ends = (input_ids[:, -1] * 40503 + position_ids[:, -1] * 9973) % MEAN_LENGTH == 0
            found.logits[:, -1, self.config.eos_token_id] += ends * 1e4
        return found


class Refusing:
    """Runs nothing: what is timed is the model."""

    def submit(self, *_: str) -> Any:
        """A verdict at once."""
        from concurrent.futures import Future
        from types import SimpleNamespace

        future: Any = Future()
        future.set_result(SimpleNamespace(passed=False, reason="not run"))
        return future


def build_model() -> Any:
    """19 million parameters, 6 of them in its layers."""
    torch.manual_seed(0)
    return Ending(LlamaConfig(
        vocab_size=50257, hidden_size=256, intermediate_size=704, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=WINDOW, tie_word_embeddings=True, initializer_range=0.1,
        bos_token_id=50256, eos_token_id=50256, pad_token_id=50256)).eval()


def cpu(work: Callable[[], Any]) -> float:
    """CPU seconds of this process."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def ask_ours(model: Any, tokenizer: Any, requests: FamilyRequests) -> None:
    """Our answers, with nothing kept."""
    network = Network(model, tokenizer)
    lm = LiveLM(network, Encoder(tokenizer), Ranks(network.device))
    with eval_guard(model):
        answer(lm, requests)


def ask_hflm(model: Any, tokenizer: Any, requests: FamilyRequests, batch: int) -> None:
    """HFLM's answers."""
    answer(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch), requests)


def answer(lm: Any, requests: FamilyRequests) -> None:
    """Ask everything upstream asks."""
    for kind in KINDS:
        asked = requests.instances(kind)
        if asked:
            give(asked, getattr(lm, kind)(asked, disable_tqdm=True))


def same(one: Any, other: Any) -> bool:
    """Whether two answers are equal."""
    return one == other if isinstance(one, str) else abs(one[0] - other[0]) < 1e-3 and one[1] == other[1]


def compare(family: Family, limit: int, rounds: int, data: Path, model: Any, tokenizer: Any, batch: int) -> float:
    """Median ratio of HFLM's CPU seconds to ours; prints both, and both accuracies."""
    requests = RequestStore().get(family, data, limit, SEED)
    requests.loaded.scorer.sandbox = Refusing()
    accuracies: dict[str, set[str]] = {"HFLM": set(), "ours": set()}
    answers: dict[str, list[Any]] = {}

    def arm(who: str, ask: Callable[[Any, Any, FamilyRequests], None]) -> Callable[[], float]:
        def measured() -> float:
            seconds = cpu(lambda: ask(model, tokenizer, requests))
            answers[who] = [one.resps[0] for kind in KINDS for one in requests.instances(kind)]
            scored = score_family(family, requests, set(), False)
            accuracies[who].add(str({key: round(score.value or 0.0, 6) for key, score in scored.scores.items()
                                     if key.startswith((f"{family.name}/", "mgsm_"))}))
            return seconds
        return measured

    found = alternate({"HFLM": arm("HFLM", partial(ask_hflm, batch=batch)), "ours": arm("ours", ask_ours)}, rounds)
    documents = sum(map(len, requests.documents.values()))
    show(f"{family.name}: CPU seconds, {documents} documents", found)
    show("", {"HFLM / ours": ratios(found, "HFLM", "ours")})
    for who, values in accuracies.items():
        print(f"{who}: {'; '.join(sorted(values))}")
    equal = [same(*pair) for pair in zip(answers["HFLM"], answers["ours"], strict=True)]
    print(f"equal answers (texts, or loglikelihoods within 1e-3 nats): {sum(equal)} of {len(equal)}")
    return statistics.median(ratios(found, "HFLM", "ours"))


def request_seconds(data: Path) -> tuple[float, float]:
    """CPU and wall seconds to render the requests of every MMLU document."""
    loaded = load_tasks(FAMILIES["mmlu"], data)
    begin, wall = time.process_time(), time.perf_counter()
    count = sum(len(render(task, list(range(len(task_documents(task)))), None, lambda: None))
                for task in loaded.tasks.values())
    cost = time.process_time() - begin, time.perf_counter() - wall
    print(f"\nrequests of {count} MMLU documents: {cost[0]:.2f} s of CPU, {cost[1]:.2f} s by the clock")
    return cost


def second_evaluation(data: Path, model: Any, tokenizer: Any) -> int:
    """Texts that a second evaluation gives to the tokenizer."""
    from lit_cpt.harness.evaluation import Kept, evaluate

    kept, asked = Kept(), [replace(FAMILIES["mgsm"], max_gen_toks=4), FAMILIES["hellaswag"]]
    counts = []
    for _ in range(2):
        evaluate(model, tokenizer, asked, data, limit=1, kept=kept)
        counts.append(kept.encoder(tokenizer).encoded)
    print(f"texts tokenised: {counts[0]} by a first evaluation, {counts[1] - counts[0]} by a second")
    return counts[1] - counts[0]


def main() -> None:
    accepted = parser(__doc__)
    accepted.add_argument("--data", default=str(DATA / "eval-mirror"), help="mirror of the evaluation data")
    accepted.add_argument("--tokenizer", default=str(DATA / "tokenizer-gpt2"), help="folder of a tokenizer")
    accepted.add_argument("--batch", type=int, default=HFLM_BATCH, help="rows of HFLM's batches")
    accepted.add_argument("--only", default="mmlu,humaneval,mgsm", help="families to measure")
    settings = accepted.parse_args()
    if not Path(settings.data).is_dir() or not Path(settings.tokenizer).is_dir():
        raise SystemExit(f"no mirror at {settings.data}, or no tokenizer at {settings.tokenizer}: give --data and "
                         "--tokenizer (`lit-cpt eval-data fetch` makes a mirror).")
    torch.set_num_threads(1)
    data, model, tokenizer = Path(settings.data), build_model(), AutoTokenizer.from_pretrained(settings.tokenizer)
    rounds, (mmlu, humaneval, mgsm) = (2, (2, 24, 2)) if settings.quick else (3, (8, 128, 12))  # documents of a task
    subjects = tuple(f"mmlu_{name}" for name in mmlu_subjects()[:: len(mmlu_subjects()) // SUBJECTS][:SUBJECTS])
    families = {"mmlu": (replace(FAMILIES["mmlu"], tasks=subjects), mmlu),
                "humaneval": (FAMILIES["humaneval"], humaneval),
                "mgsm": (replace(FAMILIES["mgsm"], max_gen_toks=256), mgsm)}
    figures = {"evaluation.request_seconds": request_seconds(data)[0]}
    second_evaluation(data, model, tokenizer)
    found = {name: compare(family, limit, rounds, data, model, tokenizer, settings.batch)
             for name, (family, limit) in families.items() if name in settings.only.split(",")}
    figures |= {f"evaluation.{name}_cpu_ratio": ratio for name, ratio in found.items()}
    if {"humaneval", "mgsm"} <= found.keys():
        figures["evaluation.generation_cpu_ratio"] = min(found["humaneval"], found["mgsm"])
    write(settings.json, figures, ("lm-eval", "transformers", "torch"))


if __name__ == "__main__":
    main()

"""What an evaluation found, as the result file that a run keeps."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from lit_cpt.evaluations import Evaluation, Failure, FamilyScore
from lit_cpt.harness.results import FamilyResult, Results
from lit_cpt.harness.scoring import BITS
from lit_cpt.harness.suite import Suite

PACKAGES = ("lit-cpt", "lm-eval", "torch", "transformers", "tokenizers")


def evaluation_of(results: Results, suite: Suite, *, step: int, tokens_seen: int | None, model: str,
                  reasons: Sequence[str], seconds: float, left_out: Mapping[str, str] | None = None) -> Evaluation:
    """The result file's content.

    Args:
        results: What was found.
        suite: What was asked.
        step: Optimizer steps made.
        tokens_seen: Tokens trained; None where nobody counts them.
        model: What was evaluated, in a few words.
        reasons: Why now.
        seconds: Of the whole evaluation.
        left_out: Families that were not even tried, each with the reason.
    """
    found = list(results.families.values())
    failures = [failure_of(one) for one in found if one.status != "ok"]
    failures += [Failure(name, "disabled", reason, None, 0.0) for name, reason in (left_out or {}).items()]
    return Evaluation(
        step=step, tokens_seen=tokens_seen, model=model, reasons=tuple(reasons), full=suite.limit is None,
        scores=tuple(score_of(one, suite) for one in found if one.status == "ok"), failures=tuple(failures),
        seconds=seconds, packages={name: version(name) for name in PACKAGES}, time=round(time.time(), 3),
        aside=suite.aside)


def failure_of(one: FamilyResult) -> Failure:
    """A family without a score that counts."""
    reason = one.error or "no reason is known"
    if one.status == "nonfinite":
        reason = (f"{one.counts.get('nonfinite', 0)} of {one.counts.get('documents', 0)} documents have no finite "
                  "answer: the model's weights or activations are NaN or infinite")
    return Failure(one.name, one.status, reason, one.traceback, one.seconds.get("total", 0.0))


def score_of(one: FamilyResult, suite: Suite) -> FamilyScore:
    """A family's score, document by document."""
    documents, clusters, hits, bits = [], [], [], []
    for task, table in one.documents.items():
        documents += [f"{task}/{number:.0f}" for number in table["doc_id"]]
        clusters += one.clusters[task]
        hits += table.get(one.metric, [])
        bits += table.get(BITS, [math.nan] * len(table["doc_id"]))
    known = one.scores.get(f"{one.name}/{BITS}")
    metrics: dict[str, dict[str, float]] = {}
    for name, score in one.scores.items():
        task, _, metric = name.rpartition("/")
        for key, value in ((metric, score.value), (f"{metric}_stderr", score.stderr)):
            if value is not None:
                metrics.setdefault(task, {})[key] = value
    return FamilyScore(
        family=one.name, metric=one.metric, documents=tuple(documents), clusters=tuple(clusters),
        hits=tuple(hits) if len(hits) == len(documents) else (),  # some tasks score only some documents
        bits_per_byte=None if known is None else known.value,
        bits=tuple(value if math.isfinite(value) else None for value in bits) if known is not None else (),
        metrics=metrics, shots=dict(one.shots), limit=suite.limit_of(one.name),
        seed=None if suite.limit_of(one.name) is None else suite.seed,
        max_new_tokens=max(one.max_gen_toks.values(), default=None), versions=dict(one.versions), data=dict(one.data),
        seconds=one.seconds.get("total", 0.0), tokens=one.counts.get("tokens", 0), cut=one.counts.get("truncated", 0),
        shortened=one.counts.get("shortened", 0))

"""Evaluate a live model on families of tasks, on one process or many, and leave it as it was."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lm_eval.api.instance import Instance
from torch import nn

from lit_cpt.harness.encoder import Encoder, fingerprint
from lit_cpt.harness.families import Family, family
from lit_cpt.harness.guard import eval_guard, is_sharded, sharded_again
from lit_cpt.harness.language_model import USUAL_ROOM, LiveLM
from lit_cpt.harness.network import Network
from lit_cpt.harness.programs import NoSandbox, Sandbox
from lit_cpt.harness.progress import Progress
from lit_cpt.harness.ranks import RankFailed, Ranks
from lit_cpt.harness.requests import GENERATES, FamilyRequests, RequestStore
from lit_cpt.harness.results import FamilyResult, Results
from lit_cpt.harness.scoring import chief_metric, score_family, start_programs
from lit_cpt.harness.tasks import sandboxed_programs

log = logging.getLogger(__name__)

PACKAGES = ("lm-eval", "transformers", "torch", "tokenizers")


@dataclass
class Kept:
    """What one evaluation leaves to the next: rendered requests, and texts already encoded, by tokenizer."""

    requests: RequestStore = field(default_factory=RequestStore)
    encoders: dict[str, Encoder] = field(default_factory=dict)

    def encoder(self, tokenizer: Any, apart: bool = False) -> Encoder:
        """The encoder of a tokenizer that gives these tokens, for models that read a context ``apart`` or not."""
        made = Encoder(tokenizer, apart)
        return self.encoders.setdefault(f"{fingerprint(tokenizer)} {apart}", made)


KEPT = Kept()
"""Of this process: some 0.3 GB once all of MMLU was evaluated."""


@dataclass(frozen=True)
class Options:
    """What is seldom changed.

    Args:
        most_rows: Rows a forward.
        share_prefixes: Compute what many requests begin with once.
        bits_per_byte: Also score a right answer where the task only generates: one more forward for each document.
        gather_weights: Under FSDP2, keep whole weights on each rank while evaluating: no lock-step, and decoding at
            the speed of one process, where the model fits.
        window: Longest input in tokens; None takes the model's.
    """

    most_rows: int = 128
    share_prefixes: bool = True
    bits_per_byte: bool = True
    gather_weights: bool = False
    window: int | None = None

    def __post_init__(self) -> None:
        at_least_one(most_rows=self.most_rows, window=self.window)


def at_least_one(**counts: int | None) -> None:
    """Refuse counts below 1; None is what each of them takes for "no bound"."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be 1 or more; leave it out for the default.")


def evaluate(model: nn.Module, tokenizer: Any, families: Sequence[str | Family], data: str | Path | None, *,
             limit: int | Mapping[str, int] | None = None, seed: int = 1234, token_budget: int = 16_384,
             deadline: float | None = None, sandbox: Sandbox | None = None, group: dist.ProcessGroup | None = None,
             kept: Kept | None = None, options: Options | None = None,
             interrupted: Callable[[], bool] = lambda: False) -> Results:
    """Score ``model`` on ``families``; a family that fails does not disturb the others.

    Call it on every rank, outside of `torch.inference_mode`, under the autocast that training has. Scores are the
    same on all ranks, and for every number of them, batch size and sharding, as far as float arithmetic is. Weights,
    gradients, training flags and random states are left as they were.

    Args:
        model: Any Hugging Face causal or encoder–decoder LM; plain, in DistributedDataParallel, or `fully_shard`'ed.
        tokenizer: Its tokenizer.
        families: ``mmlu``, ``hellaswag``, ``humaneval``, ``mgsm`` (``mgsm:all``, ``mgsm:fr+de``), any name that
            lm-eval knows, or a `Family`.
        data: Root of the mirror; None leaves data to lm-eval (cache or hub).
        limit: Documents a task (a subject of MMLU, a language of MGSM), sampled by ``seed``; one number, or one for
            each family. None takes all.
        seed: Of the sample; the worked examples in prompts always follow lm-eval's seed.
        token_budget: Tokens a forward; a cache holds four times as many. The one dial for memory and speed.
        deadline: Seconds for all families together. What has no score by then has the status ``timeout``.
        sandbox: Runs HumanEval's programs (`lit_cpt.sandbox.Sandbox`); without one it is ``unavailable``.
        group: Ranks that share the work, where not all do (tensor parallelism, see `Ranks`).
        kept: Requests and tokens of earlier evaluations; None takes those of this process.
        options: What is seldom changed.
        interrupted: Asked now and then on every rank; once it says so, the rest is a ``timeout`` too.

    Returns:
        A result for each family.

    Raises:
        ValueError: A setting is out of range, two families have one name, or the tokenizer has no EOS token.
        RuntimeError: Inside `torch.inference_mode`.
    """
    limits = dict(limit) if isinstance(limit, Mapping) else {}
    at_least_one(limit=None if isinstance(limit, Mapping) else limit, token_budget=token_budget, **limits)
    chosen, asked = options or Options(), [family(one) if isinstance(one, str) else one for one in families]
    refuse_twins(asked)
    kept = KEPT if kept is None else kept
    network, sharded = Network(model, tokenizer, chosen.window), is_sharded(model)
    encoder = kept.encoder(tokenizer, network.encodes)
    ranks = Ranks(network.device, sharded and not (chosen.gather_weights and group is None), group,
                  None if deadline is None else time.monotonic() + deadline, interrupted)
    results = Results(settings={
        "limit": limits or limit, "seed": seed, "token_budget": token_budget, **asdict(chosen),
        "window": network.window, "ranks": ranks.size, "tokenizer": str(tokenizer.name_or_path),
        "versions": {name: version(name) for name in PACKAGES}})
    folder = None if data is None else Path(data)
    with eval_guard(model), sharded_again(model, chosen.gather_weights):
        if sharded and chosen.gather_weights:
            network.idle()  # gathers the weights, on all ranks together
        for one in asked:
            lm = LiveLM(network, encoder, ranks, token_budget, chosen.most_rows, chosen.share_prefixes)
            sample = Sample(folder, limits.get(one.name) if isinstance(limit, Mapping) else limit, seed)
            results.families[one.name] = Job(one, sample, lm, kept.requests, sandbox, chosen.bits_per_byte).result()
    return results


def refuse_twins(families: Sequence[Family]) -> None:
    """Refuse two families of one name: their results would be filed in one place."""
    names = [one.name for one in families]
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise ValueError(f"families {', '.join(twins)} are asked for twice: ask once (as in 'mgsm:es+fr'), or give one "
                         "of the two a name of its own with dataclasses.replace(family, name=...).")


@dataclass(frozen=True)
class Sample:
    """Which documents: from where, how many a task, by which seed."""

    data: Path | None
    limit: int | None
    seed: int


@dataclass
class Job:
    """One family's evaluation."""

    family: Family
    sample: Sample
    lm: LiveLM
    store: RequestStore
    sandbox: Sandbox | None
    bits: bool

    def result(self) -> FamilyResult:
        """Prepare, run, score; each step fails on all ranks or on none."""
        found = FamilyResult(self.family.name)
        network, begin = self.lm.network, time.perf_counter()
        forwards, tokens = network.forwards, network.tokens
        try:
            requests = self.step("prepare", found, lambda: self.prepare(found))
            broken = self.step("run", found, lambda: self.run(requests, found))
            self.step("score", found, lambda: self.score(requests, broken, found))
        except RankFailed as error:
            found.status, found.error, found.traceback = error.status, str(error), error.trace
            if self.lm.ranks.rank == 0:
                log.warning("%s: %s (%s)", self.family.name, found.status, found.error)
        found.counts |= {"forwards": network.forwards - forwards, "tokens": network.tokens - tokens}
        found.seconds["total"] = time.perf_counter() - begin
        return found

    def step(self, name: str, found: FamilyResult, work: Callable[[], Any]) -> Any:
        """Do ``work``; every rank hears of an error on any.

        In lock-step an error in the middle of a forward cannot be told to ranks that wait for its weights; they end
        by their process group's timeout. A deadline is always agreed on before the forward.
        """
        begin, value, problem = time.perf_counter(), None, None
        try:
            value = work()
        except Exception as error:
            problem = error
        found.seconds[name] = time.perf_counter() - begin
        self.lm.ranks.agree(problem)
        return value

    # Prepare: no forwards, no collectives ----------------------------------------------------------

    def prepare(self, found: FamilyResult) -> FamilyRequests:
        """Load tasks, render and encode requests."""
        encoder, check = self.lm.encoder, self.lm.ranks.check_alone
        check()
        requests = self.store.get(self.family, self.sample.data, self.sample.limit, self.sample.seed, check)
        self.describe(requests, found)
        loaded = requests.loaded
        if loaded.runs_programs:
            self.open_sandbox(requests)
        encoder.encode_pairs([one.args for one in requests.instances("loglikelihood")], check)
        encoder.encode_contexts([one.args[0] for one in requests.instances(GENERATES)], check)
        if self.bits:
            encoder.encode_pairs([one.args for one in requests.instances(GENERATES, golds=True)], check)
        return requests

    def describe(self, requests: FamilyRequests, found: FamilyResult) -> None:
        """Note what is evaluated."""
        for name, task in requests.loaded.tasks.items():
            found.shots[name] = task.get_config("num_fewshot") or 0
            found.versions[name] = str(task.VERSION)
            if task.OUTPUT_TYPE == GENERATES:
                room = (task.get_config("generation_kwargs") or {}).get("max_gen_toks", USUAL_ROOM)
                found.max_gen_toks[name] = int(room)
        found.versions |= {group.name: group.version for group in requests.loaded.groups}
        found.data = dict(requests.loaded.hashes)
        documents = [one for listed in requests.documents.values() for one in listed]
        found.counts |= {"documents": len(documents), "requests": sum(len(one.asked) for one in documents)}

    def open_sandbox(self, requests: FamilyRequests) -> None:
        """Give the scorer of programs a sandbox that works."""
        if self.sandbox is None:
            raise NoSandbox(f"{self.family.name} runs programs that the model wrote: pass sandbox=lit_cpt.sandbox."
                            "Sandbox(), or leave the family out.")
        preflight = getattr(self.sandbox, "preflight", None)
        problem = preflight() if preflight is not None else None
        if problem:
            raise NoSandbox(f"the sandbox is not to be relied on: {problem}")
        with sandboxed_programs(requests.loaded):
            requests.loaded.scorer.sandbox = self.sandbox

    # Run: the model --------------------------------------------------------------------------------

    def run(self, requests: FamilyRequests, found: FamilyResult) -> set[int]:
        """Ask the model everything; returns the `id` of requests whose logits were not finite."""
        lm, broken = self.lm, set[int]()
        lm.tell = Progress(self.family.name, lm.ranks.rank == 0)
        lm.done = lambda request, text: start_programs(requests, request, text)
        for kind in ("loglikelihood", "loglikelihood_rolling"):
            asked = requests.instances(kind)
            if asked:
                give(asked, getattr(lm, kind)(asked))
        asked = requests.instances(GENERATES)
        if asked:
            answers = lm.answers(asked)
            give(asked, [answer.text for answer in answers])
            broken = {id(one) for one, answer in zip(asked, answers, strict=True) if not answer.finite}
        found.counts |= {"truncated": lm.truncated, "shortened": lm.shortened}
        golds = requests.instances(GENERATES, golds=True) if self.bits else []
        if golds:
            give(golds, lm.loglikelihood(golds))
        return broken

    # Score: no forwards ----------------------------------------------------------------------------

    def score(self, requests: FamilyRequests, broken: set[int], found: FamilyResult) -> None:
        """Turn answers into scores."""
        scorer, mine = requests.loaded.scorer, dict[str, bool]()
        if requests.loaded.runs_programs:
            with self.lm.ranks.together():
                mine = scorer.finish()
            scorer.verdicts |= self.lm.ranks.merge(mine)
        scored = score_family(self.family, requests, broken, self.bits)
        found.scores, found.documents, found.clusters = scored.scores, scored.documents, scored.clusters
        found.metric = chief_metric(self.family, scored)
        found.counts["nonfinite"] = scored.nonfinite
        if scored.nonfinite:
            found.status = "nonfinite"
            if self.lm.ranks.rank == 0:
                log.warning("%s: %d of %d documents have no finite answer; scores are over the others",
                            self.family.name, scored.nonfinite, found.counts["documents"])


def give(requests: Sequence[Instance], answers: Sequence[Any]) -> None:
    """Hand each request its answer, as often as its task repeats it."""
    for request, answer in zip(requests, answers, strict=True):
        request.resps = [answer] * (request.repeats or 1)

"""lm-eval's `LM` over a live model; lm-eval sees one process, the ranks share the work inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lit_cpt.harness.encoder import Encoder, Pair
from lit_cpt.harness.generation import Answer, Prompt, fit, generate
from lit_cpt.harness.loglikelihood import loglikelihoods
from lit_cpt.harness.network import Network
from lit_cpt.harness.ranks import Ranks
from lit_cpt.harness.stops import Stops

USUAL_ROOM = 256  # new tokens where neither task nor family says; HFLM's default


class LiveLM(LM):
    """Scores and generates with a model that is being trained.

    Args:
        network: The model.
        encoder: Its tokenizer, with what was encoded before.
        ranks: Who shares the work.
        token_budget: Tokens a forward.
        most_rows: Rows a forward.
        share_prefixes: Compute what many requests begin with once.
        done: Called with a request and its text, on the rank that generated it, while others are being generated.
    """

    def __init__(self, network: Network, encoder: Encoder, ranks: Ranks, token_budget: int = 16_384,
                 most_rows: int = 128, share_prefixes: bool = True,
                 done: Callable[[Instance, str], None] = lambda request, text: None) -> None:
        super().__init__()
        self.network, self.encoder, self.ranks, self.done = network, encoder, ranks, done
        self.tell: Callable[[int, int, str], None] = lambda *_: None  # told how far the work is
        self.budget, self.most_rows, self.share_prefixes = token_budget, most_rows, share_prefixes
        generation = getattr(network.model, "generation_config", None)
        ends = getattr(generation, "eos_token_id", None)
        self.ends = frozenset([encoder.eos, *([ends] if isinstance(ends, int) else ends or ())])
        self.truncated = 0  # requests cut to the window
        self.shortened = 0  # answers with less room than asked

    @property
    def tokenizer_name(self) -> str:
        """As lm-eval's caches name it."""
        return str(self.encoder.tokenizer.name_or_path).replace("/", "__")

    def score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Loglikelihood of each pair's continuation, and whether it is the greedy one."""
        found, cut = loglikelihoods(self.network, self.ranks, pairs, self.budget, self.most_rows,
                                    64 if self.share_prefixes else None, self.tell)
        self.truncated += cut
        return found

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """For each (context, continuation): log-probability in nats, and whether greedy decoding would give it."""
        asked = [request.args for request in requests]
        self.encoder.encode_pairs(asked, self.ranks.check_alone)
        return self.score([self.encoder.pairs[pair] for pair in asked])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """For each text: its log-probability in nats, in disjoint windows as HFLM cuts them."""
        texts = self.encoder.encode([request.args[0] for request in requests], self.encoder.first_text)
        pairs: list[Pair] = []
        owners: list[int] = []
        for owner, tokens in enumerate(texts):
            for window in get_rolling_token_windows(token_list=list(tokens), prefix_token=self.encoder.first,
                                                    max_seq_len=self.network.window, context_len=1):
                context, continuation = make_disjoint_window(window)
                pairs.append((tuple(context), tuple(continuation)))
                owners.append(owner)
        totals = [0.0] * len(texts)
        for owner, (value, _) in zip(owners, self.score(pairs), strict=True):
            totals[owner] += value
        return totals

    def answers(self, requests: Sequence[Instance]) -> list[Answer]:
        """Greedy answers.

        Raises:
            ValueError: A task asks for sampling.
        """
        contexts = [request.args[0] for request in requests]
        self.encoder.encode_contexts(contexts, self.ranks.check_alone)
        stops: dict[tuple[str, ...], Stops] = {}
        prompts = [self._prompt(number, request, stops) for number, request in enumerate(requests)]
        found = generate(self.network, self.ranks, prompts, self.budget, self.most_rows,
                         lambda prompt, answer: self.done(requests[prompt.number], answer.text), self.tell)
        return [found[number] for number in range(len(requests))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy answers, each cut before its first stop string."""
        return [answer.text for answer in self.answers(requests)]

    def _prompt(self, number: int, request: Instance, known: dict[tuple[str, ...], Stops]) -> Prompt:
        """Tokens, room and stops of a request."""
        settings: dict[str, Any] = dict(normalize_gen_kwargs(request.args[1], USUAL_ROOM))
        if settings.get("do_sample") or settings.get("num_beams", 1) != 1:
            raise ValueError(f"task {request.task_name!r} asks for do_sample={settings.get('do_sample')}, num_beams="
                             f"{settings.get('num_beams', 1)}; answers here are greedy. Give the task greedy "
                             "generation_kwargs, or leave it out.")
        eos = self.encoder.tokenizer.decode(self.encoder.eos, skip_special_tokens=False)
        strings = tuple(handle_stop_sequences(settings["until"], eos=eos))
        if strings not in known:
            known[strings] = Stops(self.encoder.tokenizer, strings, self.ends)
        whole = self.encoder.contexts[request.args[0]] or (self.encoder.first,)
        tokens, room = fit(whole, settings["max_gen_toks"], self.network.window, self.network.encodes)
        self.truncated += len(tokens) < len(whole)
        self.shortened += room < settings["max_gen_toks"]
        return Prompt(number, tokens, room, known[strings])

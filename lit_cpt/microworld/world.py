"""A seeded world in five sources of text, and questions about it that no text answers directly."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lit_cpt.microworld.arithmetic import Arithmetic
from lit_cpt.microworld.entities import Entities
from lit_cpt.microworld.probes import Probe
from lit_cpt.microworld.procedures import Procedures
from lit_cpt.microworld.programs import Programs
from lit_cpt.microworld.proportions import Proportions
from lit_cpt.microworld.real_text import real_text
from lit_cpt.microworld.vocabulary import ATTRIBUTES, SMALL_TALK, WEATHER, WEEKDAYS

PREREGISTERED = Proportions()

HELD_OUT_QA_ROUNDS = 2
STRUCTURE_NOISE = 0.35  # of steps in a web account; the noise of facts is a proportion of the world
# Where each kind of web document ends in [0, 1); questions follow, small talk fills the rest.
PROFILES, TALK, ACCOUNTS, SUMS = 0.55, 0.70, 0.82, 0.92


class World:
    """One deterministic world: the same seed and proportions give the same bytes.

    Attributes:
        documents: Source to its documents: web, books, code, multi, qa and, on request, real.
        held_out_qa: Question and answer documents that ``documents["qa"]`` does not hold, for a validation
            loss; about no held-out person, sum, story or composition either.
        probes: Family to its probes: knowledge, completion, code, math, transfer.
    """

    def __init__(self, seed: int = 0, proportions: Proportions = PREREGISTERED, with_real_text: bool = False) -> None:
        """Build the world; about one second for the default proportions.

        Args:
            seed: Decides names, facts, steps, splits and every document.
            proportions: Sizes and shares.
            with_real_text: Adds a source ``real`` of text that comes with Python; changes no other document.
        """
        # One generator for all, in a fixed order: a draw added or moved changes every later document.
        rng = random.Random(seed)
        self.seed, self.proportions = seed, proportions
        self.entities = Entities(rng, proportions)
        self.procedures = Procedures(rng, self.entities.given_names, proportions.activities)
        self.programs = Programs(seed, proportions.held_out_programs)
        self.arithmetic = Arithmetic(seed, proportions)
        self.documents: dict[str, list[str]] = {
            "web": [self.web(rng) for _ in range(proportions.web)],
            "books": [self.book(rng) for _ in range(proportions.books)],
            "code": [self.programs.document(rng) for _ in range(proportions.code)],
            "multi": [self.arithmetic.multilingual(rng) for _ in range(proportions.multi)],
            "qa": self.questions(rng, rounds=1),
        }
        known = set(self.documents["qa"])
        self.held_out_qa = [text for text in self.questions(rng, HELD_OUT_QA_ROUNDS) if text not in known]
        self.probes: dict[str, Sequence[Probe]] = {
            "knowledge": self.entities.probes(random.Random(seed + 1)),
            "completion": self.procedures.probes(random.Random(seed + 2)),
            "code": self.programs.probes(rng, random.Random(seed + 3), proportions.code_probes),
            "math": self.arithmetic.probes(random.Random(seed + 4), held_out=False),
            "transfer": self.arithmetic.probes(random.Random(seed + 5), held_out=True),
        }
        if with_real_text:
            self.documents["real"] = real_text()

    def web(self, rng: random.Random) -> str:
        """A web document: plenty of everything, much of it wrong."""
        kind = rng.random()
        if kind < PROFILES:
            return self.entities.profile(rng, self.proportions.web_noise)
        if kind < TALK:
            return small_talk(rng)
        if kind < ACCOUNTS:
            return self.procedures.noisy(rng, STRUCTURE_NOISE)
        if kind < SUMS:
            return self.arithmetic.english(rng)
        if kind < SUMS + self.proportions.web_questions:
            return self.entities.popular_question(rng, self.proportions.web_noise) or small_talk(rng)
        return small_talk(rng)

    def book(self, rng: random.Random) -> str:
        """A book document: everybody alike, and all of it true."""
        return self.entities.biography(rng) if rng.random() < 0.68 else self.procedures.clean(rng)

    def questions(self, rng: random.Random, rounds: int) -> list[str]:
        """Question and answer documents, shuffled; each round asks every person and activity once."""
        texts: list[str] = []
        for _ in range(rounds):
            texts += [self.entities.true_question(rng, name) for name in self.entities.train]
            texts += [self.arithmetic.question(rng) for _ in range(self.proportions.qa_problems)]
            texts += [self.programs.question(rng) for _ in range(self.proportions.qa_programs)]
            texts += [self.procedures.question(rng, activity) for activity in self.procedures.steps]
        rng.shuffle(texts)
        return texts

    def contamination(self) -> list[str]:
        """Every probe that a training document gives away, as ``family: prompt``; none in a clean world.

        Searches all of ``documents``, as they are now, for every trace of every probe: the prompt or a looser
        text (any question about the person, the function under another name, the story with any ending).
        ``held_out_qa`` is no training text and is not searched.
        """
        # One text per source: Python skips a Thai string in ASCII text without looking.
        texts = ["\0".join(dict.fromkeys(documents)) for documents in self.documents.values()]
        traces = {trace for probes in self.probes.values() for probe in probes for trace in probe.traces}
        leaks = {trace for trace in traces if any(trace in text for text in texts)}
        return [
            f"{family}: {probe.prompt}"
            for family, probes in self.probes.items()
            for probe in probes
            if not leaks.isdisjoint(probe.traces)
        ]


def small_talk(rng: random.Random) -> str:
    """A sentence about nothing that is asked."""
    form = rng.choice(SMALL_TALK)
    return form.format(city=rng.choice(ATTRIBUTES["city"]), weather=rng.choice(WEATHER), day=rng.choice(WEEKDAYS))

"""Sums of small numbers in four languages: bare, as stories, as questions."""

from __future__ import annotations

import random
from dataclasses import dataclass

from lit_cpt.microworld.holdout import hash_share
from lit_cpt.microworld.languages import ENGLISH, LANGUAGES
from lit_cpt.microworld.probes import NumberProbe
from lit_cpt.microworld.proportions import Proportions

SIGNS = ("+", "-")
SMALLEST_FIRST, SMALLEST_SECOND = 2, 1
PROBES_PER_SUM = 2


@dataclass(frozen=True)
class Sum:
    """``first sign second``, with a positive result."""

    sign: str
    first: int
    second: int

    @property
    def result(self) -> int:
        """What the sum comes to."""
        return self.first + self.second if self.sign == "+" else self.first - self.second

    def phrase(self, forms: tuple[str, str], name: str = "", thing: str = "") -> str:
        """The form of ``forms`` (addition, subtraction) for this sum, filled in."""
        form = forms[SIGNS.index(self.sign)]
        return form.format(a=self.first, b=self.second, result=self.result, name=name, thing=thing)


@dataclass(frozen=True)
class Problem:
    """A sum told as a story in one language."""

    language: str
    sum: Sum
    name: str
    thing: str

    @property
    def story(self) -> str:
        """The word problem without its question."""
        return self.sum.phrase(LANGUAGES[self.language].story, self.name, self.thing)

    @property
    def asked(self) -> str:
        """The story with its question."""
        return self.story + LANGUAGES[self.language].question.format(thing=self.thing)


class Arithmetic:
    """The sums of one world, and which are held out.

    Two splits. *Sums*: a share of (language, sum) occurs in no story and no question of that language, only
    as a bare sum. *Stories*: of the other sums, a share of (language, sum, name, thing) occurs nowhere.
    """

    def __init__(self, seed: int, sizes: Proportions) -> None:
        self.seed, self.sizes = seed, sizes

    def sum_held_out(self, language: str, asked: Sum) -> bool:
        """Whether ``asked`` may occur in no story of ``language``."""
        key = ("m", language, asked.sign, asked.first, asked.second)
        return hash_share(self.seed, *key) < self.sizes.held_out_sums

    def story_held_out(self, problem: Problem) -> bool:
        """Whether ``problem`` may be told nowhere, wherever else its sum is told."""
        asked = problem.sum
        key = ("s", problem.language, asked.sign, asked.first, asked.second, problem.name, problem.thing)
        return hash_share(self.seed, *key) < self.sizes.held_out_stories

    def any_sum(self, rng: random.Random) -> Sum:
        """Any sum of the range, held out or not."""
        while True:
            drawn = Sum(
                rng.choice(SIGNS),
                rng.randint(SMALLEST_FIRST, self.sizes.largest_first),
                rng.randint(SMALLEST_SECOND, self.sizes.largest_second),
            )
            if drawn.result > 0:
                return drawn

    def open_problem(self, rng: random.Random, language: str) -> Problem:
        """A problem of which neither the sum nor the story is held out."""
        words = LANGUAGES[language]
        while True:
            drawn = self.any_sum(rng)
            if self.sum_held_out(language, drawn):
                continue
            problem = Problem(language, drawn, rng.choice(words.people), rng.choice(words.things))
            if not self.story_held_out(problem):
                return problem

    def english(self, rng: random.Random) -> str:
        """A web document: an English sum, half of them as stories."""
        drawn = self.any_sum(rng)
        if rng.random() < 0.5:
            return drawn.phrase(ENGLISH.short)
        name, thing = rng.choice(ENGLISH.people), rng.choice(ENGLISH.things)
        return drawn.phrase(ENGLISH.story, name, thing) + ENGLISH.statement.format(
            name=name, thing=thing, result=drawn.result
        )

    def multilingual(self, rng: random.Random) -> str:
        """A document in Spanish, Japanese or Thai: half bare sums, half stories.

        A story states its result, or asks for it and is answered by a sentence or by a bare number.
        """
        language = rng.choice(list(LANGUAGES))
        words = LANGUAGES[language]
        problem = self.open_problem(rng, language)
        if rng.random() < 0.5:
            return self.any_sum(rng).phrase(words.short)
        ending = rng.random()
        if ending < self.sizes.replies:
            return problem.asked + words.reply.format(result=problem.sum.result)
        if ending < self.sizes.replies + self.sizes.exercises:
            return f"{problem.asked}{words.answer_cue} {problem.sum.result}"
        return problem.story + words.statement.format(result=problem.sum.result, thing=problem.thing)

    def question(self, rng: random.Random) -> str:
        """A problem as question and answer, in any of the three languages."""
        problem = self.open_problem(rng, rng.choice(list(LANGUAGES)))
        return f"{self.prompt(problem)} {problem.sum.result}"

    def prompt(self, problem: Problem) -> str:
        """The problem as a question, up to where its answer begins."""
        words = LANGUAGES[problem.language]
        return words.question_cue + problem.asked + words.answer_cue

    def probes(self, rng: random.Random, held_out: bool) -> list[NumberProbe]:
        """Two problems for each (language, sum), each in its language.

        Args:
            rng: Draws names and things.
            held_out: True asks the held-out sums (transfer); False the held-out stories of the others (math).
        """
        return [
            self.probe(problem, held_out)
            for language in LANGUAGES
            for asked in self.sums()
            if self.sum_held_out(language, asked) == held_out
            for problem in self.asked_problems(rng, language, asked, held_out)
        ]

    def sums(self) -> list[Sum]:
        """All sums of the range."""
        every = [
            Sum(sign, first, second)
            for sign in SIGNS
            for first in range(SMALLEST_FIRST, self.sizes.largest_first + 1)
            for second in range(SMALLEST_SECOND, self.sizes.largest_second + 1)
        ]
        return [candidate for candidate in every if candidate.result > 0]

    def asked_problems(self, rng: random.Random, language: str, asked: Sum, held_out: bool) -> list[Problem]:
        """The problems of ``asked`` that become probes."""
        problems = [problem for problem in problems_of(language, asked) if held_out or self.story_held_out(problem)]
        return rng.sample(problems, min(PROBES_PER_SUM, len(problems)))

    def probe(self, problem: Problem, held_out: bool) -> NumberProbe:
        """``problem`` as a probe, with the stories that would give it away."""
        asked = problem.sum
        # A held-out sum must not be told of anybody; a held-out story only not of this person and thing.
        told = problems_of(problem.language, asked) if held_out else [problem]
        return NumberProbe(
            prompt=self.prompt(problem),
            answer=asked.result,
            cluster=repr((problem.language, asked.sign, asked.first, asked.second)),
            traces=tuple(story.story for story in told),
        )


def problems_of(language: str, asked: Sum) -> list[Problem]:
    """Every story that can be told of one sum."""
    words = LANGUAGES[language]
    return [Problem(language, asked, name, thing) for name in words.people for thing in words.things]

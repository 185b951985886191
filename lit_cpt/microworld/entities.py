"""People with four attributes each: true in books, often wrong on the web, asked about by name."""

from __future__ import annotations

import itertools
import random

from lit_cpt.microworld.probes import ChoiceProbe
from lit_cpt.microworld.proportions import Proportions
from lit_cpt.microworld.vocabulary import ATTRIBUTES, SYLLABLES

GIVEN_NAMES, FAMILY_NAMES = 40, 60

SENTENCES = {
    "city": (
        "{name} lives in {value}.",
        "The home of {name} is in {value}.",
        "{name} has a house in {value}.",
        "For many years {name} has lived in {value}.",
    ),
    "job": (
        "{name} works as a {value}.",
        "{name} earns a living as a {value}.",
        "The job of {name} is {value}.",
        "{name} became a {value}.",
    ),
    "instrument": (
        "{name} plays the {value}.",
        "Every evening {name} practises the {value}.",
        "{name} owns an old {value}.",
        "The instrument of {name} is the {value}.",
    ),
    "food": (
        "{name} likes to eat {value}.",
        "For dinner {name} cooks {value}.",
        "The favourite food of {name} is {value}.",
        "{name} always orders {value}.",
    ),
}
QUESTIONS = {
    "city": ("Where does {name} live?", "In which city is the home of {name}?"),
    "job": ("What is the job of {name}?", "What does {name} work as?"),
    "instrument": ("Which instrument does {name} play?", "What instrument does {name} own?"),
    "food": ("Which food does {name} like?", "What is the favourite food of {name}?"),
}
# Every question form about a person holds one of these, so a question in any form is found.
QUESTION_TRACES = ("of {name}?", "does {name} ")
ONE_SENTENCE = "{name} lives in {city} and works as a {job}. {pronoun} plays the {instrument} and likes to eat {food}."


class Entities:
    """The people of one world.

    Attributes:
        given_names: The first names, sorted; activities are told with them.
        names: All full names, shuffled: first the held-out ones.
        test: People who never occur in any question.
        train: People who may be asked about.
        facts: Name to attribute to true value.
    """

    def __init__(self, rng: random.Random, sizes: Proportions) -> None:
        """Invent the people; their popularity falls as rank ** -``sizes.zipf_exponent``."""
        given: set[str] = set()
        family: set[str] = set()
        while len(given) < GIVEN_NAMES:
            given.add(invented_name(rng))
        while len(family) < FAMILY_NAMES:
            family.add(invented_name(rng))
        self.given_names = sorted(given)
        family_names = sorted(family - given)
        names: set[str] = set()
        while len(names) < sizes.entities:
            names.add(f"{rng.choice(self.given_names)} {rng.choice(family_names)}")
        self.names = sorted(names)
        rng.shuffle(self.names)
        self.facts = {
            name: {attribute: rng.choice(values) for attribute, values in ATTRIBUTES.items()} for name in self.names
        }
        held_out = int(sizes.entities * sizes.held_out_entities)
        self.test, self.train = self.names[:held_out], self.names[held_out:]
        self.held_out = frozenset(self.test)
        # Ranked anew, so that being held out says nothing about popularity.
        self.ranked = self.names[:]
        rng.shuffle(self.ranked)
        weights = (1 / rank**sizes.zipf_exponent for rank in range(1, sizes.entities + 1))
        self.popularity = list(itertools.accumulate(weights))

    def popular(self, rng: random.Random) -> str:
        """A name, drawn by popularity."""
        return rng.choices(self.ranked, cum_weights=self.popularity)[0]

    def profile(self, rng: random.Random, noise: float) -> str:
        """A web page about somebody popular; each value is drawn at random with probability ``noise``."""
        name = self.popular(rng)
        facts = {
            attribute: rng.choice(ATTRIBUTES[attribute]) if rng.random() < noise else value
            for attribute, value in self.facts[name].items()
        }
        if rng.random() < 0.5:
            return f"{name} | " + " | ".join(f"{attribute}: {value}" for attribute, value in facts.items())
        return ONE_SENTENCE.format(name=name, pronoun=rng.choice(("He", "She")), **facts)

    def biography(self, rng: random.Random) -> str:
        """Four true sentences about anybody, in any order, each in one of four wordings."""
        name = rng.choice(self.names)
        attributes = list(ATTRIBUTES)
        rng.shuffle(attributes)
        return " ".join(
            rng.choice(SENTENCES[attribute]).format(name=name, value=self.facts[name][attribute])
            for attribute in attributes
        )

    def popular_question(self, rng: random.Random, noise: float) -> str | None:
        """A web question with its answer, wrong as often as a profile; None if the name drawn is held out."""
        name = self.popular(rng)
        if name in self.held_out:
            return None
        attribute = rng.choice(list(ATTRIBUTES))
        value = self.facts[name][attribute] if rng.random() > noise else rng.choice(ATTRIBUTES[attribute])
        return f"{question(name, attribute, rng.randint(0, 1))}\nAnswer: {value}"

    def true_question(self, rng: random.Random, name: str) -> str:
        """A question about ``name`` with its true answer."""
        attribute = rng.choice(list(ATTRIBUTES))
        return f"{question(name, attribute, rng.randint(0, 1))}\nAnswer: {self.facts[name][attribute]}"

    def probes(self, rng: random.Random) -> list[ChoiceProbe]:
        """One question for each held-out person: the true value among three others of the attribute."""
        return [self.probe(rng, name) for name in self.test]

    def probe(self, rng: random.Random, name: str) -> ChoiceProbe:
        """The question for one attribute of ``name``."""
        attribute = rng.choice(list(ATTRIBUTES))
        value = self.facts[name][attribute]
        options = [value, *rng.sample([other for other in ATTRIBUTES[attribute] if other != value], 3)]
        rng.shuffle(options)
        prompt = f"{question(name, attribute, 0)}\nAnswer:"
        return ChoiceProbe(
            prompt=prompt,
            options=tuple(f" {option}" for option in options),
            answer=options.index(value),
            cluster=name,
            traces=(prompt, *(trace.format(name=name) for trace in QUESTION_TRACES)),
        )


def invented_name(rng: random.Random) -> str:
    """Two syllables."""
    return "".join(rng.choice(SYLLABLES) for _ in range(2)).capitalize()


def question(name: str, attribute: str, form: int) -> str:
    """The question for ``attribute`` of ``name`` in wording ``form`` (0 or 1); probes use 0."""
    return "Question: " + QUESTIONS[attribute][form].format(name=name)

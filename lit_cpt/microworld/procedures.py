"""Activities of five steps: told rightly in books, garbled on the web, completed by actors never seen."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lit_cpt.microworld.probes import ChoiceProbe
from lit_cpt.microworld.vocabulary import PASTIMES, SEASONS, TOOLS, VERBS

ORDINALS = ("First", "Then", "Next", "After that", "Finally")
TRAINING_ACTORS = 28  # of the 40 given names; the other 12 act in probes only

Step = tuple[str, str]


class Procedures:
    """The activities of one world.

    Attributes:
        actors: Names that act in training documents.
        test_actors: Names that act in probes only.
        steps: Activity to its five (verb, tool) steps. The three seasons of a pastime are siblings.
    """

    def __init__(self, rng: random.Random, given_names: Sequence[str], count: int) -> None:
        """Invent the steps of ``count`` activities."""
        self.actors, self.test_actors = given_names[:TRAINING_ACTORS], given_names[TRAINING_ACTORS:]
        activities = [f"{season} {pastime}" for pastime in PASTIMES for season in SEASONS][:count]
        self.steps: dict[str, list[Step]] = {
            activity: [(rng.choice(VERBS), tool) for tool in rng.sample(TOOLS, len(ORDINALS))]
            for activity in activities
        }

    def clean(self, rng: random.Random) -> str:
        """A book's account of an activity."""
        activity = rng.choice(list(self.steps))
        return tell(rng.choice(self.actors), activity, self.steps[activity])

    def noisy(self, rng: random.Random, noise: float) -> str:
        """A web account: half are out of order, and each step is replaced with probability ``noise``."""
        activity = rng.choice(list(self.steps))
        actor = rng.choice(self.actors)
        steps = self.steps[activity][:]
        if rng.random() < 0.5:
            rng.shuffle(steps)
        steps = [step if rng.random() > noise else (rng.choice(VERBS), rng.choice(TOOLS)) for step in steps]
        return tell(actor, activity, steps)

    def question(self, rng: random.Random, activity: str) -> str:
        """A question for one step of ``activity`` with its answer."""
        number = rng.randrange(len(ORDINALS))
        actor = rng.choice(self.actors)
        answer = sentence(number, actor, self.steps[activity][number])
        return f"Question: What is step {number + 1} when you go {activity}?\nAnswer:{answer}"

    def probes(self, rng: random.Random) -> list[ChoiceProbe]:
        """For each activity the steps 2 to 5, each told so far by a held-out actor."""
        return [self.probe(rng, activity, number) for activity in self.steps for number in range(1, len(ORDINALS))]

    def probe(self, rng: random.Random, activity: str, number: int) -> ChoiceProbe:
        """Asks for step ``number`` (from 0) after the steps before it."""
        actor = rng.choice(self.test_actors)
        steps = self.steps[activity]
        right = steps[number]
        options = [right, *self.distractors(rng, activity, number)]
        rng.shuffle(options)
        prompt = f"{tell(actor, activity, steps[:number])} {ORDINALS[number]} {actor}"
        return ChoiceProbe(
            prompt=prompt,
            options=tuple(f" {verb} the {tool}." for verb, tool in options),
            answer=options.index(right),
            cluster=activity,
            traces=(prompt,),
        )

    def distractors(self, rng: random.Random, activity: str, number: int) -> list[Step]:
        """Three wrong steps: another of this activity, one of a sibling, one of a stranger."""
        pastime = activity.split()[-1]
        others = [other for other in self.steps if other != activity]
        siblings = [other for other in others if other.split()[-1] == pastime]
        strangers = [other for other in others if other not in siblings]
        right = self.steps[activity][number]
        sibling_step = rng.choice([step for other in siblings for step in self.steps[other] if step != right])
        strange_step = rng.choice([step for other in strangers for step in self.steps[other] if step != right])
        own_step = rng.choice([step for position, step in enumerate(self.steps[activity]) if position != number])
        return [own_step, sibling_step, strange_step]


def tell(actor: str, activity: str, steps: Sequence[Step]) -> str:
    """The account of ``actor`` going through ``steps``, at most five."""
    return f"{actor} went {activity}." + "".join(sentence(number, actor, step) for number, step in enumerate(steps))


def sentence(number: int, actor: str, step: Step) -> str:
    """One step as a sentence after a space."""
    verb, tool = step
    return f" {ORDINALS[number]} {actor} {verb} the {tool}."

"""How large a world is, and how its parts are shared out."""

from __future__ import annotations

from dataclasses import dataclass, fields

from lit_cpt.microworld.vocabulary import PASTIMES, SEASONS

BOUNDS: dict[str, tuple[float, float]] = {
    "entities": (4, 1000),  # of about 2300 possible full names, so that an unused one is soon found
    "activities": (2 * len(SEASONS), len(PASTIMES) * len(SEASONS)),
    "largest_first": (5, 99),
    "largest_second": (2, 99),
    "web_questions": (0.0, 0.08),  # what the other kinds of web document leave
    "web_noise": (0.0, 1.0),
    "replies": (0.0, 1.0),
    "exercises": (0.0, 1.0),
    # More than half held out could leave nothing to tell in some language.
    "held_out_entities": (0.0, 0.5),
    "held_out_sums": (0.0, 0.5),
    "held_out_stories": (0.0, 0.5),
    "held_out_programs": (0.0, 0.5),
}


@dataclass(frozen=True)
class Proportions:
    """Sizes and shares of a world; the defaults are those of the pre-registered world (sha256 ac4042cd).

    Raises:
        ValueError: A value lies outside its bounds.
    """

    entities: int = 400
    activities: int = 72  # a multiple of 3: each pastime in three seasons
    web: int = 45_000  # documents, as the next three
    books: int = 12_000
    code: int = 12_000
    multi: int = 24_000
    qa_problems: int = 110  # word problems in the question and answer pool
    qa_programs: int = 50  # functions in it; every person and activity is asked once besides
    code_probes: int = 160  # at most; fewer in a world that holds out less
    largest_first: int = 9  # number of a sum
    largest_second: int = 4
    zipf_exponent: float = 0.6  # how fast popularity on the web falls with rank
    web_noise: float = 0.35  # share of wrong facts on the web
    web_questions: float = 0.015  # share of web documents that ask about a person
    replies: float = 0.10  # share of stories that end in a question answered by a sentence
    exercises: float = 0.25  # share of stories that end in a question answered by a number
    held_out_entities: float = 0.5  # share of people in no question
    held_out_sums: float = 0.25  # share of (language, sum) in no story
    held_out_stories: float = 0.3  # share of (language, sum, name, thing) nowhere
    held_out_programs: float = 0.25  # share of compositions nowhere

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            low, high = BOUNDS.get(field.name, (0, float("inf")))
            if not low <= value <= high:
                raise ValueError(f"{field.name}={value}: accepted are {low} to {high}. Give one of these.")
        if self.activities % len(SEASONS):
            raise ValueError(
                f"activities={self.activities}: each pastime has {len(SEASONS)} seasons, "
                f"which are distractors for one another. Give a multiple of {len(SEASONS)}."
            )


# Of the ready grids: more to be learnt of procedures, sums and programs than the defaults, whose families are nearly
# mastered in a long run. Chosen on worlds that no grid uses, by the scores of a base and of the general blend alone.
LABORATORY = Proportions(activities=144, largest_first=12, largest_second=6, held_out_programs=0.5)

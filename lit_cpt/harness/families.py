"""What the evaluation families are: lm-eval tasks, shots, data, room for an answer. No torch, no lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
PAPER_LANGUAGES = ("es", "ja", "th")


@dataclass(frozen=True)
class Family:
    """One evaluation family.

    Args:
        name: What results are filed under.
        tasks: Names of lm-eval tasks, groups or tags.
        shots: Worked examples in the prompt; None leaves what each task says.
        max_gen_toks: New tokens an answer may have; None leaves what each task says, and lm-eval's 256 where it says
            nothing.
        gold: Column with the text of a right answer, for `bits_per_byte`; None takes the task's own target.
        repositories: Dataset repositories the tasks read, which must be in the mirror; empty where unknown.
        metric: The one that stands for the family, as scores call it; None takes the first that its tasks give.
        parallel: Whether document n of every task is the same one, such as a problem in several languages.
        folder: Folder of lm-eval task files that define the tasks; None takes lm-eval's own.
    """

    name: str
    tasks: tuple[str, ...]
    shots: int | None = None
    max_gen_toks: int | None = None
    gold: str | None = None
    repositories: tuple[str, ...] = ()
    metric: str | None = None
    parallel: bool = False
    folder: str | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError(f"family {self.name!r} has no tasks: name at least one lm-eval task, group or tag.")
        for field, lowest in (("shots", 0), ("max_gen_toks", 1)):
            value = getattr(self, field)
            if value is not None and value < lowest:
                raise ValueError(f"family {self.name!r} has {field}={value}; give {lowest} or more, or None for "
                                 "what the task says.")


def mgsm_tasks(languages: Sequence[str]) -> tuple[str, ...]:
    """lm-eval's names of MGSM with native chains of thought.

    >>> mgsm_tasks(["es", "th"])
    ('mgsm_native_cot_es', 'mgsm_native_cot_th')
    """
    unknown = [language for language in languages if language not in LANGUAGES]
    if unknown or not languages:
        raise ValueError(f"mgsm has no language {', '.join(unknown) or '(none given)'}; it has "
                         f"{', '.join(LANGUAGES)}. Write 'mgsm:es+ja', or 'mgsm:all'.")
    return tuple(f"mgsm_native_cot_{language}" for language in languages)


FAMILIES = {one.name: one for one in (
    Family("mmlu", ("mmlu",), shots=5, repositories=("cais/mmlu",), metric="acc"),
    Family("hellaswag", ("hellaswag",), shots=0, repositories=("Rowan/hellaswag",), metric="acc_norm"),
    Family("humaneval", ("humaneval",), shots=0, max_gen_toks=1024, gold="canonical_solution",
           repositories=("openai/openai_humaneval",), metric="pass_at_1"),
    # lm-eval says nothing of MGSM's answers, so its default of 256 tokens would cut Japanese and Thai ones.
    Family("mgsm", mgsm_tasks(PAPER_LANGUAGES), shots=8, max_gen_toks=512, repositories=("juletxara/mgsm",),
           metric="exact_match_flexible_extract", parallel=True),
)}
"""The families of the paper, with its shots."""


def family(name: str) -> Family:
    """The family called ``name``, or any lm-eval task, group or tag, at its own settings.

    >>> family("mgsm:es+fr").tasks
    ('mgsm_native_cot_es', 'mgsm_native_cot_fr')
    >>> family("mmlu").shots, family("arc_easy").shots
    (5, None)
    """
    stem, _, choice = name.partition(":")
    if stem == "mgsm" and choice:
        return replace(FAMILIES["mgsm"], tasks=mgsm_tasks(LANGUAGES if choice == "all" else choice.split("+")))
    return FAMILIES.get(name) or Family(name, (name,))

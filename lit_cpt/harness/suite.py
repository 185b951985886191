"""What is evaluated, as a run's config says it. No torch, no lm-eval."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lit_cpt.harness.families import FAMILIES, Family, family

DATA_VARIABLE = "LIT_CPT_EVAL_DATA"


@dataclass(frozen=True)
class Suite:
    """Families and the sample that is taken of them.

    Args:
        tasks: ``mmlu``, ``hellaswag``, ``humaneval``, ``mgsm`` (or ``mgsm:all``, ``mgsm:de+fr``), and any task, group
            or tag of lm-eval.
        data: Root of the mirror that `lit-cpt eval-data fetch` made; left out, the environment's
            ``LIT_CPT_EVAL_DATA``, and without that lm-eval's own way (the hub and its cache).
        limit: Documents of each task (a subject of MMLU, a language of MGSM), drawn by ``seed``: one number, or one
            for each family. Left out, all documents.
        seed: Of that draw.
        shots: Worked examples in a prompt by family, where others than the paper's are wanted.
        max_gen_toks: New tokens of an answer by family, where others than usual are wanted.
        folder: Folder of lm-eval task files that defines all of ``tasks``, instead of lm-eval's own.
        aside: Families that are scored, but do not count in the average.

    Raises:
        ValueError: No tasks, the same twice, or a number out of range; a setting for a family that is not asked.
    """

    tasks: tuple[str, ...] = tuple(FAMILIES)
    data: str | None = None
    limit: int | dict[str, int] | None = None
    seed: int = 1234
    shots: dict[str, int] = field(default_factory=dict)
    max_gen_toks: dict[str, int] = field(default_factory=dict)
    folder: str | None = None
    aside: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.tasks, str):
            raise ValueError(f"tasks={self.tasks!r} is one text: give a list, such as [mmlu, hellaswag].")
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "aside", tuple(self.aside))
        if not self.tasks:
            raise ValueError(f"tasks=[] leaves nothing to evaluate: name some of {', '.join(FAMILIES)}, or tasks of "
                             "lm-eval.")
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ValueError(f"tasks={list(self.tasks)} names {', '.join(twice)} twice: ask once, as in 'mgsm:es+fr'.")
        limits = self.limit if isinstance(self.limit, Mapping) else {}
        if unknown := [name for name in self.aside if name not in self.names]:
            raise ValueError(f"aside={list(self.aside)} names {', '.join(unknown)}, which is not evaluated: tasks are "
                             f"{', '.join(self.names)}.")
        for setting, lowest, values in (("limit", 1, limits), ("shots", 0, self.shots),
                                        ("max_gen_toks", 1, self.max_gen_toks)):
            for name, value in values.items():
                if name not in self.names:
                    raise ValueError(f"{setting} for {name!r}, which is not evaluated: tasks are "
                                     f"{', '.join(self.names)}.")
                if value < lowest:
                    raise ValueError(f"{setting}={value} of {name} must be {lowest} or more; leave it out for the "
                                     "usual.")
        if isinstance(self.limit, int) and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be 1 or more documents of each task; leave it out for all.")

    @property
    def names(self) -> tuple[str, ...]:
        """What results are filed under: ``mgsm`` for ``mgsm:all``."""
        return tuple(family(name).name for name in self.tasks)

    @property
    def root(self) -> Path | None:
        """The mirror; None where lm-eval looks for data itself."""
        found = self.data or os.environ.get(DATA_VARIABLE)
        return Path(found).expanduser() if found else None

    @property
    def families(self) -> list[Family]:
        """The families with this suite's settings."""
        return [replace(one, shots=self.shots.get(one.name, one.shots), folder=self.folder,
                        max_gen_toks=self.max_gen_toks.get(one.name, one.max_gen_toks))
                for one in map(family, self.tasks)]

    def limit_of(self, name: str) -> int | None:
        """Documents that are taken of each task of a family; None for all."""
        return self.limit.get(name) if isinstance(self.limit, Mapping) else self.limit

    @property
    def whole(self) -> Suite:
        """The same over all documents."""
        return replace(self, limit=None)


@dataclass(frozen=True)
class Effort:
    """What an evaluation may take.

    Args:
        seconds: For all families together; those that have no score by then get the status ``timeout``. Left out, as
            long as it takes.
        token_budget: Tokens of a forward; four times as many are held as keys and values. The dial for memory.
        gather_weights: Under FSDP2, hold whole weights on each rank while evaluating: generation then runs at the speed
            of one process, where the model fits.
        bits_per_byte: Also score the right answer where a task only generates; a forward more for each document.
        allow_weak_sandbox: Run written programs where neither bubblewrap nor namespaces work, with limits of resources
            only.
        most_failures: Failures in a row after which a family is left out for the rest of the run.

    Raises:
        ValueError: A number out of range.
    """

    seconds: float | None = None
    token_budget: int = 16_384
    gather_weights: bool = False
    bits_per_byte: bool = True
    allow_weak_sandbox: bool = False
    most_failures: int = 3

    def __post_init__(self) -> None:
        for name in ("token_budget", "most_failures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more.")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds={self.seconds} must be positive; leave it out for as long as it takes.")

"""Preparation by several machines: each does some parts of the same job, and one finishes it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_cpt.prepare.job import Job, part_folder
from lit_cpt.prepare.parts import Part


@dataclass(frozen=True)
class Shard:
    """The parts that one of ``count`` machines does.

    Which parts there are is a function of the inputs alone, so the finished source does not depend on ``count``: its
    bytes are those of a preparation on one machine.

    Args:
        index: This machine's number, from 0.
        count: Of machines.

    Raises:
        ValueError: ``index`` is not in 0 .. ``count - 1``.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"shard={self} is none: give i/n with i from 0 to n - 1, such as 0/8 to 7/8.")

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The shard written ``i/n``.

        Raises:
            ValueError: It is written otherwise.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if found is None:
            raise ValueError(f"shard={text!r} is none: give i/n with i from 0 to n - 1, such as 0/8 to 7/8.")
        return cls(*map(int, found.groups()))

    def __str__(self) -> str:
        """As on the command line."""
        return f"{self.index}/{self.count}"

    def of(self, parts: Sequence[Part]) -> list[Part]:
        """Every ``count``-th of the parts."""
        return list(parts[self.index :: self.count])

    def place(self, state: Path) -> Path:
        """The folder whose lock says that this shard is being done."""
        folder = state / f"shard-{self.index}-of-{self.count}"
        folder.mkdir(exist_ok=True)
        return folder


def check_whole(job: Job, state: Path) -> None:
    """Refuse to finish a job of which parts are missing.

    Raises:
        ValueError: With the shards that have to be done, where their number is known.
    """
    missing = [part.index for part in job.parts if not part_folder(state, part).is_dir()]
    if not missing:
        return
    counts = {int(path.name.rsplit("-", 1)[1]) for path in state.glob("shard-*-of-*")}
    again = "the shards that have not been run"
    if len(counts) == 1:
        count = counts.pop()
        again = ", ".join(f"--shard {Shard(index, count)}" for index in sorted({part % count for part in missing}))
    raise ValueError(f"{len(missing)} of {len(job.parts)} parts are missing in {state}: run {again}, then merge. (Run "
                     "without --shard and --merge to have this machine do the rest.)")

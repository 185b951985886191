"""What is asked of a model, and what counts as a right answer. No model and no tensor here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from lit_cpt.microworld.interpreter import run_program

# The four families whose mean is the outcome. ``transfer`` is scored beside them and not averaged.
FAMILIES = ("knowledge", "completion", "code", "math")

GENERATED_LINES = 3  # a line break, the return line, and one more


@dataclass(frozen=True)
class ChoiceProbe:
    """A prompt with four continuations, of which one is right.

    Attributes:
        prompt: The text before the choice; it does not end in a space.
        options: The continuations, each beginning with a space.
        answer: The index of the right option.
        cluster: Probes of one cluster stand or fall together; resample clusters, not probes.
        traces: Texts that would give the probe away; none may occur in a training document.
    """

    prompt: str
    options: tuple[str, ...]
    answer: int
    cluster: str
    traces: tuple[str, ...] = field(repr=False)

    def grade(self, scores: Sequence[float]) -> int:
        """1 when the highest of ``scores``, shape (options,), is the right option's; ties go to the first."""
        return int(max(range(len(self.options)), key=lambda option: scores[option]) == self.answer)


@dataclass(frozen=True)
class CodeProbe:
    """A signature with a docstring; the model writes the ``return`` line.

    Attributes:
        prompt: Up to the closing quotes, without a line break: the model writes it with the indent.
        reference: A body that is right.
        function: The name the prompt defines.
        arguments: What the function is called with, one call for each.
        cluster: See `ChoiceProbe`.
        traces: See `ChoiceProbe`.
    """

    prompt: str
    reference: str
    function: str
    arguments: tuple[int | tuple[int, ...], ...]
    cluster: str
    traces: tuple[str, ...] = field(repr=False)

    def grade(self, generated: str) -> int:
        """1 when the body that ``generated`` begins with returns what the reference does, every time."""
        body = "\n".join(generated.split("\n")[:GENERATED_LINES]).split("\ndef")[0]
        wanted = run_program(self.prompt + self.reference, self.function, self.arguments)
        return int(run_program(self.prompt + body, self.function, self.arguments) == wanted)


@dataclass(frozen=True)
class NumberProbe:
    """A word problem; the model writes a number.

    Attributes:
        prompt: The problem, its question and the answer cue.
        answer: The result.
        cluster: See `ChoiceProbe`.
        traces: See `ChoiceProbe`.
    """

    prompt: str
    answer: int
    cluster: str
    traces: tuple[str, ...] = field(repr=False)

    def grade(self, generated: str) -> int:
        """1 when the first integer of the first line of ``generated`` is the answer."""
        found = re.search(r"\d+", generated.split("\n")[0])
        return int(found is not None and int(found[0]) == self.answer)


Probe = ChoiceProbe | CodeProbe | NumberProbe

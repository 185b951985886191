"""Functions of one line: a docstring that says what to compute, and the ``return`` that computes it."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass

from lit_cpt.microworld.holdout import hash_share
from lit_cpt.microworld.probes import CodeProbe

# operator -> (how the docstring says it, how the code writes it)
ARITHMETIC = {
    "add": ("add {operand}", "{expression} + {operand}"),
    "sub": ("subtract {operand}", "{expression} - {operand}"),
    "mul": ("multiply by {operand}", "{expression} * {operand}"),
}
REDUCTIONS = {
    "max": ("the largest item of {parameter}", "max({parameter})"),
    "min": ("the smallest item of {parameter}", "min({parameter})"),
    "sum": ("the sum of {parameter}", "sum({parameter})"),
    "len": ("the length of {parameter}", "len({parameter})"),
    "fst": ("the first item of {parameter}", "{parameter}[0]"),
    "lst": ("the last item of {parameter}", "{parameter}[-1]"),
}
OPERANDS = range(1, 10)
LIST_ARGUMENTS = ((3, 1, 7, 2), (10, 4, 5))
NUMBER_ARGUMENTS = (2, 5, 11)

# A composition: an optional reduction, then (operator, operand) pairs flattened, as in ("max", "add", 3).
Composition = tuple[str | int, ...]


@dataclass(frozen=True)
class Program:
    """One written composition.

    Attributes:
        name: The function's name.
        head: The ``def`` line and the docstring, ending in a line break.
        body: The indented ``return`` line, ending in a line break.
        task: The docstring without its full stop.
    """

    name: str
    head: str
    body: str
    task: str

    @property
    def source(self) -> str:
        """The whole function."""
        return self.head + self.body


class Programs:
    """The functions of one world; a share of all compositions of two or more operations is held out."""

    def __init__(self, seed: int, held_out_share: float) -> None:
        self.seed, self.held_out_share = seed, held_out_share

    def held_out(self, composition: Composition) -> bool:
        """Whether ``composition`` may occur in probes only; single operations never do."""
        return len(composition) > 2 and hash_share(self.seed, "c", composition) < self.held_out_share

    def draw(self, rng: random.Random) -> Composition:
        """A composition that is not held out."""
        while True:
            composition = any_composition(rng)
            if not self.held_out(composition):
                return composition

    def document(self, rng: random.Random) -> str:
        """A function that is not held out."""
        return write(rng, self.draw(rng)).source

    def question(self, rng: random.Random) -> str:
        """The task as a question, with the function as its answer."""
        program = write(rng, self.draw(rng))
        return f"Question: Write a function. {program.task}.\nAnswer:\n{program.source}"

    def probes(self, rng: random.Random, order: random.Random, count: int) -> list[CodeProbe]:
        """``count`` held-out compositions, or fewer in a world that holds out less.

        A quarter reduce a list and do one operation, a quarter do two, half do two operations on a number.

        Args:
            rng: Draws the names of functions and parameters.
            order: Draws which compositions are asked.
            count: How many to ask.
        """
        candidates = [composition for composition in compositions() if self.held_out(composition)]
        order.shuffle(candidates)
        one = [composition for composition in candidates if len(composition) == 3][: count // 4]
        two = [composition for composition in candidates if len(composition) == 5][: count // 2 - len(one)]
        numeric = [composition for composition in candidates if len(composition) == 4]
        return [probe(rng, chosen) for chosen in one + two + numeric[: count - len(one) - len(two)]]


def any_composition(rng: random.Random) -> Composition:
    """A composition of any kind, held out or not."""
    kind = rng.random()
    if kind < 0.15:
        return operation(rng)
    if kind < 0.3:
        return reduction(rng)
    if kind < 0.6:
        return operation(rng) + operation(rng)
    if kind < 0.8:
        return reduction(rng) + operation(rng)
    return reduction(rng) + operation(rng) + operation(rng)


def operation(rng: random.Random) -> Composition:
    """One operation with its operand."""
    return (rng.choice(list(ARITHMETIC)), rng.choice(OPERANDS))


def reduction(rng: random.Random) -> Composition:
    """One way from a list to a number."""
    return (rng.choice(list(REDUCTIONS)),)


def compositions() -> list[Composition]:
    """All compositions that can be held out: of a number, then of a list with one and two operations."""
    operations = list(itertools.product(ARITHMETIC, OPERANDS))
    return (
        [first + second for first in operations for second in operations]
        + [(name, *first) for name in REDUCTIONS for first in operations]
        + [(name, *first, *second) for name in REDUCTIONS for first in operations for second in operations]
    )


def write(rng: random.Random, composition: Composition) -> Program:
    """The function that computes ``composition``, under names drawn from ``rng``."""
    reduce = composition[0] in REDUCTIONS
    parameter = rng.choice(("xs", "items", "nums") if reduce else ("x", "n", "y"))
    spoken, expression = parameter, parameter
    if reduce:
        spoken, expression = (form.format(parameter=parameter) for form in REDUCTIONS[str(composition[0])])
    task = f"Take {spoken}"
    operations = composition[1:] if reduce else composition
    for name, operand in zip(operations[::2], operations[1::2], strict=True):
        said, written = ARITHMETIC[str(name)]
        if name == "mul" and re.search(r" [+-] ", expression):
            expression = f"({expression})"
        task += ", then " + said.format(operand=operand)
        expression = written.format(expression=expression, operand=operand)
    function = rng.choice(("f", "g", "calc", "solve", "run"))
    head = f'def {function}({parameter}):\n    """{task}."""\n'
    return Program(function, head, f"    return {expression}\n", task)


def probe(rng: random.Random, composition: Composition) -> CodeProbe:
    """Asks for the body of the function that computes ``composition``."""
    program = write(rng, composition)
    # The byte-level tokenizer merges a line break with the indent after it, so a prompt that ended in the
    # line break would show the model tokens it has never seen.
    prompt, reference = program.head.rstrip("\n"), "\n" + program.body
    return CodeProbe(
        prompt=prompt,
        reference=reference,
        function=program.name,
        arguments=LIST_ARGUMENTS if composition[0] in REDUCTIONS else NUMBER_ARGUMENTS,
        cluster=repr(composition),
        # Without the `def` line: the function must not be known under another name either.
        traces=(re.sub(r"def \w+\(\w+\):", "", prompt + reference).strip(),),
    )

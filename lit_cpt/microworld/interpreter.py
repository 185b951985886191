"""Runs the one-line functions of the world without ``exec``: reads the syntax tree and computes it itself."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence

Value = int | list[int]

LONGEST_SOURCE = 2000  # characters; a prompt and three generated lines are under 300

OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
FUNCTIONS: dict[str, Callable[..., Value]] = {
    "max": max,
    "min": min,
    "sum": sum,
    "len": len,
    "sorted": sorted,
    "abs": abs,
}


def run_program(source: str, function: str, arguments: Sequence[int | Sequence[int]]) -> list[Value] | None:
    """Call ``function`` of ``source`` once for each argument.

    ``source`` is one ``def`` with one parameter, an optional docstring and one ``return``. The returned
    expression may hold integers, the parameter, ``+ - *`` between integers, an index, and calls of
    max, min, sum, len, sorted, abs. Anything else is refused before anything is computed, so a text
    cannot import, open, loop, recurse, name an attribute or grow a list: there is no ``exec`` to escape.
    Numbers cannot explode either, since powers and shifts are refused and the source is short.

    What this does not do: judge Python in general. A right function written with ``if``, a loop, a second
    statement or ``xs * 2`` counts as wrong. For such programs use `lit_cpt.sandbox`.

    Args:
        source: Python text, at most 2000 characters.
        function: The name that ``source`` must define.
        arguments: Integers or lists of integers.

    Returns:
        The results in the order of ``arguments``, or None when the source is refused or a call fails.
    """
    try:
        parameter, expression = returned_expression(source, function)
        return [evaluate(expression, {parameter: as_value(argument)}) for argument in arguments]
    except (SyntaxError, ValueError, TypeError, IndexError, RecursionError, MemoryError):
        return None


def as_value(argument: int | Sequence[int]) -> Value:
    """``argument`` as the program may have it: a list of its own, whatever the sequence."""
    return argument if isinstance(argument, int) else list(argument)


def returned_expression(source: str, function: str) -> tuple[str, ast.expr]:
    """The parameter and the expression that ``source`` returns.

    Raises:
        SyntaxError: ``source`` is not Python.
        ValueError: ``source`` is Python of another shape than `run_program` accepts.
    """
    if len(source) > LONGEST_SOURCE:
        raise ValueError(f"{len(source)} characters; at most {LONGEST_SOURCE} are read. Cut it shorter.")
    match ast.parse(source).body:
        case [ast.FunctionDef(name=name, decorator_list=[], returns=None) as defined] if name == function:
            parameter = ast.unparse(defined.args)
        case _:
            raise ValueError(f"not a single plain `def {function}(parameter)`: nothing else is run.")
    if not parameter.isidentifier():  # it holds a comma, a star, a default or an annotation
        raise ValueError(f"{function} takes ({parameter}): only one plain parameter is accepted.")
    match defined.body[ast.get_docstring(defined) is not None :]:
        case [ast.Return(value=ast.expr() as expression)]:
            return parameter, expression
    raise ValueError(f"the body of {function} is not one `return` with a value: nothing else is run.")


def evaluate(node: ast.expr, names: Mapping[str, Value]) -> Value:
    """The value of ``node``.

    Raises:
        ValueError: The expression holds something that is not allowed.
        TypeError: An operation meets a value it is not for.
        IndexError: An index lies outside its list.
    """
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            return number
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -integer(evaluate(operand, names))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](integer(evaluate(left, names)), integer(evaluate(right, names)))
        case ast.Subscript(value=sequence, slice=index):
            items = evaluate(sequence, names)
            if isinstance(items, int):
                raise TypeError(f"{items} has no items.")
            return items[integer(evaluate(index, names))]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*(evaluate(argument, names) for argument in arguments))
    raise ValueError(f"{type(node).__name__} is not allowed here: see `run_program` for what is.")


def integer(value: Value) -> int:
    """``value`` itself when it is an integer.

    Raises:
        TypeError: It is a list. So ``+`` and ``*`` cannot build lists, however large the factor.
    """
    if not isinstance(value, int):
        raise TypeError(f"{value} is a list where an integer is needed.")
    return value

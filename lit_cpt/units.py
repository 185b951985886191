"""Counts, sizes and times as people write them: "300B" tokens, "64MB", "1h 05m"."""

from __future__ import annotations

import math
import re

COUNT = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
         "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
NUMBER = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_count(value: int | float | str, name: str = "value") -> int:
    """Whole number from ``300_000_000_000``, ``300e9``, ``"300B"``, ``"1.5T"`` or ``"10k"``.

    Args:
        value: The count; suffixes k, M, B (or G), T, in either case.
        name: What the count is called in an error.

    Raises:
        ValueError: Not a number, negative, or not whole.

    >>> parse_count("300B"), parse_count("1.5k"), parse_count(3e9)
    (300000000000, 1500, 3000000000)
    """
    return scaled(value, COUNT, name, 'a whole number such as 300000000000, 300e9, "300B", "1.5T" or "10k"')


def parse_bytes(value: int | float | str, name: str = "value") -> int:
    """Whole bytes from ``1000``, ``"64MB"`` (10^6) or ``"64MiB"`` (2^20).

    >>> parse_bytes("64MB"), parse_bytes("1GiB")
    (64000000, 1073741824)
    """
    return scaled(value, BYTES, name, 'a size such as 1000, "64MB" or "64MiB"')


def scaled(value: int | float | str, scale: dict[str, int], name: str, accepted: str) -> int:
    """``value`` with its suffix multiplied out; exact for decimals that come to a whole number."""
    match = NUMBER.fullmatch(str(value))
    if isinstance(value, bool) or match is None or match[2].lower() not in scale:
        raise ValueError(f"{name}={value!r} is not a count: write {accepted}.")
    number, factor = match[1].replace("_", ""), scale[match[2].lower()]
    product = int(number) * factor if number.isdigit() else float(number) * factor
    if not math.isfinite(product) or abs(product - round(product)) > max(1e-6, 1e-15 * product):
        raise ValueError(f"{name}={value!r} comes to {product}: write {accepted}.")
    return round(product)


def format_count(count: float) -> str:
    """Short form with four significant digits.

    >>> format_count(213_400_000_000), format_count(2_460_000), format_count(512)
    ('213.4B', '2.46M', '512')
    """
    return shortened(count, ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")))


def format_bytes(size: float) -> str:
    """Short decimal size.

    >>> format_bytes(64_000_000)
    '64 MB'
    """
    return shortened(size, ((10**12, " TB"), (10**9, " GB"), (10**6, " MB"), (10**3, " kB"))) + (
        " B" if size < 1000 else "")


def shortened(number: float, scale: tuple[tuple[int, str], ...]) -> str:
    """``number`` over the largest unit that it fills, four significant digits, no trailing zeros."""
    for factor, suffix in scale:
        if abs(float(f"{number:.4g}")) >= factor:  # rounded first: 999,999 is 1M, not 1000k
            return f"{number / factor:.4g}{suffix}"
    return f"{number:.4g}"


def format_seconds(seconds: float) -> str:
    """Time as a person says it.

    >>> format_seconds(3900), format_seconds(75), format_seconds(2.5)
    ('1h 05m', '1m 15s', '2.5s')
    """
    if seconds < 59.95:
        return f"{seconds:.3g}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}h"
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s"

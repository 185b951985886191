from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_cpt.units import format_bytes, format_count, format_seconds, parse_bytes, parse_count


@pytest.mark.parametrize(("written", "count"), [
    ("300B", 300 * 10**9), ("300b", 300 * 10**9), ("300G", 300 * 10**9), ("1.5T", 1_500 * 10**9),
    ("2.5M", 2_500_000), ("300_000", 300_000), (300e9, 300 * 10**9), ("3e9", 3 * 10**9), ("10k", 10_000),
    (" 7 k ", 7_000), (0, 0),
    ("0.1k", 100), ("1.07T", 1_070 * 10**9), (12, 12), ("1e3k", 10**6),
])
def test_a_count_is_read_as_people_write_it(written, count):
    assert parse_count(written) == count
    assert isinstance(parse_count(written), int)


@pytest.mark.parametrize(("written", "size"), [
    (1000, 1000), ("64MB", 64 * 10**6), ("64MiB", 64 * 2**20), ("1GiB", 2**30), ("1.5kB", 1500),
    ("2tb", 2 * 10**12), ("8b", 8), ("0.5KiB", 512),
])
def test_a_size_is_read_in_decimal_or_binary_units(written, size):
    assert parse_bytes(written) == size


@pytest.mark.parametrize("wrong", ["", "many", "-5", -5, "3 dozen", "1,000", True, None, "nan", "inf",
                                   float("nan")])
def test_what_is_no_count_is_refused_by_name_and_value(wrong):
    with pytest.raises(ValueError, match=f"horizon={wrong!r} is not a count: write a whole number such as"):
        parse_count(wrong, "horizon")


@pytest.mark.parametrize(("wrong", "product"), [("1.2345k", r"1234\.5"), (0.5, r"0\.5"), ("1e-3", r"0\.001"),
                                                ("1e400", "inf")])
def test_a_count_that_is_not_whole_is_refused_with_what_it_comes_to(wrong, product):
    with pytest.raises(ValueError, match=f"value={wrong!r} comes to {product}"):
        parse_count(wrong)


def test_a_size_with_an_unknown_unit_is_refused_with_the_units_that_are_known():
    with pytest.raises(ValueError, match="cache='5 blocks' is not a count: write a size such as 1000"):
        parse_bytes("5 blocks", "cache")


@given(st.integers(0, 10**18))
def test_every_whole_number_is_read_exactly(count):
    assert parse_count(count) == parse_count(str(count)) == parse_count(f"{count:_}") == count


@given(st.integers(0, 9999), st.sampled_from(["", "k", "M", "B", "T"]))
def test_a_formatted_count_reads_back_to_four_digits(number, suffix):
    count = parse_count(f"{number}{suffix}")
    assert math.isclose(parse_count(format_count(count)), count, rel_tol=5e-4)


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (512, "512"), (1000, "1k"), (2_460_000, "2.46M"),
                                             (213_400_000_000, "213.4B"), (1.5e12, "1.5T"), (-2000, "-2k")])
def test_a_count_is_shown_in_its_largest_unit(count, text):
    assert format_count(count) == text


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (64_000_000, "64 MB"),
                                            (1.25e9, "1.25 GB"), (3e12, "3 TB")])
def test_a_size_is_shown_in_decimal_units(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (2.5, "2.5s"), (59, "59s"), (60, "1m 00s"),
                                               (75, "1m 15s"), (3900, "1h 05m"), (86400, "1d 00h"), (100_000,
                                               "1d 03h")])
def test_a_time_is_shown_as_a_person_says_it(seconds, text):
    assert format_seconds(seconds) == text

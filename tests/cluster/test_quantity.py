"""Kubernetes quantities."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.k8s.quantity import parse_quantity


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("8", 8),
        ("1500m", Fraction(3, 2)),
        ("64Gi", 64 * 2**30),
        ("1.5Gi", 3 * 2**29),
        ("2k", 2000),
        ("1e3", 1000),
        (".5", Fraction(1, 2)),
        ("1E", 10**18),
        ("12E-1", Fraction(6, 5)),
    ],
)
def test_a_quantity_is_read_exactly(text: str, amount: Fraction) -> None:
    assert parse_quantity(text) == amount


@pytest.mark.parametrize("text", ["", "lots", "-1", "1 Gi", "1gi", "1GiB", "0x1", "1e", "Gi"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a Kubernetes quantity"):
        parse_quantity(text)


@given(st.integers(0, 10**6), st.sampled_from(["Ki", "Mi", "Gi"]))
def test_binary_suffixes_are_powers_of_1024(number: int, suffix: str) -> None:
    assert parse_quantity(f"{number}{suffix}") == number * 1024 ** (["Ki", "Mi", "Gi"].index(suffix) + 1)

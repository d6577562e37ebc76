"""Kubernetes quantities, such as 64Gi, 1500m or 8: read exactly, written never."""

import re
from fractions import Fraction

_FORM = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)|[eE]([+-]?\d{1,2}))?")
_DECIMAL = {"m": Fraction(1, 1000), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_BINARY = {f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", start=1)}


def parse_quantity(text: str) -> Fraction:
    """The exact amount: cores, bytes or pieces. Raises `ValueError` for anything else, signs included."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a Kubernetes quantity, such as 64Gi, 1500m or 8")
    number, suffix, exponent = found.groups()
    if exponent:
        return Fraction(number) * Fraction(10) ** int(exponent)
    return Fraction(number) * Fraction({**_DECIMAL, **_BINARY}.get(suffix, 1))

"""How much a body holds, counted in its bytes before anything is made of it.

Making objects of JSON is one call that nothing interrupts, and costs by what there is: a body of 4 MiB can hold a
million objects, seconds of work and gigabytes. So is telling what is wrong with each. Counting costs milliseconds, in
slices between which other threads go on.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from serving.errors import InvalidRequest

SLICE_BYTES = 64 * 1024
"""Looked at in one go, a millisecond at most."""
READ_ON = 4
"""A body over the limit is read on and thrown away up to that many times it: a client still sending sees no answer."""
_MAX_DIGITS = 64
"""Of one number."""
_ZEROS = bytes.maketrans(b"123456789", b"000000000")


@dataclass(slots=True)
class Counts:
    """What JSON text holds."""

    objects: int = 0
    lists: int = 0
    strings: int = 0
    """Keys among them."""
    commas: int = 0
    """About as many as there are values."""


LIMITS = Counts(objects=10_000, lists=10_000, strings=60_000, commas=100_000)
"""Most that a body may hold. A chat has an object for each message and each part of one; prompts of token ids are
counted apart (see `serving.api.ids`). At these it takes some 20 ms to check a body."""


def check(body: bytes) -> None:
    """Raise `InvalidRequest` when a body holds more than `LIMITS`, or a number of more than 64 digits."""
    _check(count(body, LIMITS))


def _check(counts: Counts) -> None:
    for one in fields(Counts):
        found, most = getattr(counts, one.name), getattr(LIMITS, one.name)
        if found > most:
            name = "values" if one.name == "commas" else one.name
            raise InvalidRequest(f"the body holds more than {most} {name}", code="body_too_complex")


def count(body: bytes, most: Counts | None = None) -> Counts:
    """Count what stands in JSON text, and stop soon after there is too much. Raises `InvalidRequest` as `check` does.

    Text that is no JSON gives numbers without a meaning: reading it will tell.
    """
    counts, tail = Counts(), b""
    for outside, quotes in _slices(body):
        counts.objects += outside.count(b"{")
        counts.lists += outside.count(b"[")
        counts.commas += outside.count(b",")
        counts.strings += quotes
        if most is not None and _exceeds(counts, most):
            break
        zeros = (tail + outside).translate(_ZEROS)
        if b"0" * (_MAX_DIGITS + 1) in zeros:
            raise InvalidRequest(f"the body holds a number of more than {_MAX_DIGITS} digits", code="body_too_complex")
        tail = zeros[-_MAX_DIGITS:]
    return counts


def _exceeds(counts: Counts, most: Counts) -> bool:
    return any(getattr(counts, one.name) > getattr(most, one.name) for one in fields(Counts))


def _slices(body: bytes) -> Iterator[tuple[bytes, int]]:
    """Of each slice of a body what is outside of strings, and how many strings begin in it."""
    inside, rest = 0, b""
    for start in range(0, len(body), SLICE_BYTES):
        piece = rest + body[start : start + SLICE_BYTES]
        plain = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        rest = b"\\" if plain.endswith(b"\\") else b""  # its other half is in the next slice
        parts = plain.split(b'"')
        yield b"".join(parts[inside::2]), (len(parts) - inside) // 2
        inside = (inside + len(parts) - 1) % 2

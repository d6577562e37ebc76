"""Bytes that are nearly right: what a parser mostly refuses at once teaches less than what it nearly takes."""

import os
from collections.abc import Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

_EXAMPLES = os.environ.get("FUZZ_EXAMPLES")

fuzz = settings(
    max_examples=int(_EXAMPLES or 100),
    derandomize=_EXAMPLES is None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
"""How long each property is tried; FUZZ_EXAMPLES makes it longer, and another run another one."""


@st.composite
def mutated(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    """One of `samples` with a few places cut out, replaced, or written several times."""
    data = draw(st.sampled_from(samples))
    for _ in range(draw(st.integers(1, 4))):
        begin, end = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        middle = draw(st.one_of(st.binary(max_size=8), st.just(data[begin:end] * draw(st.integers(2, 40)))))
        data = data[:begin] + middle + data[end:]
    return data


def any_bytes(samples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Arbitrary ones, and `samples` changed in places."""
    return st.one_of(st.binary(max_size=200), mutated(samples))

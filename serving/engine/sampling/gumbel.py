"""Random numbers as a function: the noise of a token depends on (seed, position, token id) and on nothing else.

So a draw does not depend on the batch, the number of ranks or a restart, and each rank makes only the noise of its own
vocabulary slice. The mixing function is SplitMix64's (Steele, Lea, Flood: "Fast splittable pseudorandom number
generators", OOPSLA 2014), used as a counter-based generator.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from serving.engine.sampling.blockwise import blockwise


def _signed(constant: int) -> int:
    """The int64 with the bits of an unsigned 64-bit constant: torch multiplies int64 with wrap-around."""
    return constant - 2**64 if constant >= 2**63 else constant


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)
_LARGEST = 1 - 2.0**-24
"""The float32 before 1."""


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _MIX_1
    x = (x ^ _shifted(x, 27)) * _MIX_2
    return x ^ _shifted(x, 31)


def gumbel(seeds: Sequence[int], positions: Sequence[int], first_id: int, count: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise of ids [first_id, first_id + count) for each row.

    Args:
        seeds: S of 0 <= seed < 2**63.
        positions: S, position of the token to be drawn in its own sequence.
        first_id: first vocabulary id of the slice.
        count: ids in the slice.
        device: where the noise is made.

    Returns:
        float32 [S, count]; the arg max over ids of log-probability + noise is an exact draw (Gumbel-max).
    """
    seed = torch.tensor(seeds, dtype=torch.int64).to(device, non_blocking=True)
    place = torch.tensor(positions, dtype=torch.int64).to(device, non_blocking=True)
    key = _mix(_mix(seed + _GOLDEN) + place * _GOLDEN)
    ids = torch.arange(first_id, first_id + count, dtype=torch.int64, device=device)
    steps = (ids + 1) * _GOLDEN
    # Exponential noise from log1p, its logarithm is (minus) the Gumbel noise.
    return blockwise(lambda keys: -torch.log(-torch.log1p(-uniform(_mix(keys + steps)))), key[:, None])


def uniform(bits: Tensor) -> Tensor:
    """48 of the 64 random bits of an int64 as a float32 in (0, 1), both ends excluded after rounding too.

    Small values keep their precision: it is they that decide a draw of an unlikely token. The sum of the largest ones
    would round to 1, whose noise is minus infinity: a token that is certain could not be drawn.
    """
    fraction = ((bits & 0xFFFFFF).float() + 0.5) * 2.0**-24
    return ((_shifted(bits, 40).float() + fraction) * 2.0**-24).clamp(max=_LARGEST)

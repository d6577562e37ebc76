"""Exchanges between the ranks whose results have the same bits on every rank, whatever the number of ranks.

Both go through the bare all-reduce of float32, the cheapest collective there is, with numbers whose sums are exact.
"""

import torch
from torch import Tensor

from serving.engine.distributed.collectives import Collectives

_LIMBS = 4
_LIMB_BITS = 16
"""float32 adds whole numbers below 2**16 exactly over 256 ranks."""


def gather(collectives: Collectives, mine: Tensor) -> Tensor:
    """float32 [...] of every rank as [world, ...]: one sum of buffers that are zero but for the own part."""
    everyone = torch.zeros(collectives.world, *mine.shape, dtype=torch.float32, device=mine.device)
    everyone[collectives.rank] = mine
    return collectives.all_reduce(everyone)


def add(collectives: Collectives, mine: Tensor) -> Tensor:
    """The sum over the ranks of int64 [...], which must be 0 <= sum < 2**63."""
    if collectives.world == 1:
        return mine
    limbs = torch.stack([(mine >> _LIMB_BITS * place) & (2**_LIMB_BITS - 1) for place in range(_LIMBS)])
    sums = collectives.all_reduce(limbs.float()).long()
    total = sums[0]
    for place in range(1, _LIMBS):
        total = total + (sums[place] << _LIMB_BITS * place)
    return total

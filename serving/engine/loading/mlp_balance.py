"""Evens out what ranks compute where the heads do not divide: a rank with fewer heads takes more of the MLP.

AutoTP splits 9 heads over 2 ranks as 6 and 3, and the MLP in halves, so that in every layer one rank waits for the
other. Which columns of an MLP a rank holds makes no difference to the sum over the ranks but for its rounding.

It pays where two halves of a step take turns (`kernels/csrc/decoder_layer.h`): a rank behind in the attention of
one half is ahead in the MLP of the other. In a step that is not halved each block ends with a sum, and both ranks wait.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from serving.engine.distributed.collectives import Collectives
from serving.engine.loading.weights import Share

GRAIN = 32
"""Columns are moved in whole panels of the kernels."""

_LAYER = re.compile(r"^(?:.*\.)?\d+(?=\.)")


@dataclass(frozen=True)
class Mlp:
    """The linear layers of one MLP, and what this rank holds of them and of the rest of their decoder layer."""

    inward: tuple[str, ...]
    outward: str
    width: int
    """Columns of this rank; -1 where the inward layers are split otherwise than in that one range."""

    column_elements: int
    """Weights of one column, in all of the MLP's layers."""

    rest_elements: int
    """Weights of this rank in the decoder layer's other linear layers."""


def even_out(
    shares: Mapping[str, Share],
    shapes: Mapping[str, tuple[int, ...]],
    collectives: Collectives,
    device: torch.device,
) -> dict[str, Share]:
    """The shares with the MLPs' split moved so that all ranks hold about the same. Collective, on every rank.

    `shapes`: [out, in] of this rank's weights. An MLP stays as it is where the ranks hold the same already, where it is
    split otherwise than in one range (fused gate and up), and where a rank would be left without any of it.
    """
    mlps = list(_mlps(shares, shapes))
    known = torch.zeros(len(mlps), 2, collectives.world, dtype=torch.int64, device=device)
    for mine, mlp in zip(known, mlps, strict=True):
        mine[:, collectives.rank] = torch.tensor([mlp.rest_elements, mlp.width])
    evened = dict(shares)
    for (rest, now), mlp in zip(collectives.all_reduce(known).tolist(), mlps, strict=True):
        if len(set(rest)) == 1 or min(now) < 1:
            continue
        widths = split(sum(now), rest, mlp.column_elements)
        if min(widths) < 1:
            continue
        first = sum(widths[: collectives.rank])
        last = first + widths[collectives.rank]
        evened[mlp.outward] = Share(columns=(first, last))
        evened.update({name: Share(rows=torch.arange(first, last)) for name in mlp.inward})
    return evened


def split(columns: int, rest: Sequence[int], column_elements: int) -> list[int]:
    """Columns of each rank, in multiples of `GRAIN` but for the last, so that rest + columns is about even."""
    level = _level(columns * column_elements, rest)
    wanted = [max(0.0, level - mine) / column_elements for mine in rest]
    ends = [min(columns, round(sum(wanted[: rank + 1]) / GRAIN) * GRAIN) for rank in range(len(rest) - 1)]
    return [end - start for start, end in pairwise([0, *ends, columns])]


def _level(amount: int, rest: Sequence[int]) -> float:
    """How high `amount` of water stands in vessels that are filled to `rest`."""
    filled = sorted(rest)
    while (level := (amount + sum(filled)) / len(filled)) < filled[-1]:
        filled.pop()
    return level


def _mlps(shares: Mapping[str, Share], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Mlp]:
    """The same ones in the same order on every rank, as names alone decide."""
    for outward, share in shares.items():
        layer, owner = _LAYER.match(outward), outward.rpartition(".")[0]
        if share.columns is None or layer is None or "attention" in owner or "attn" in owner:
            continue
        inward = tuple(name for name in shares if name.rpartition(".")[0] == owner and name != outward)
        mine, members = torch.arange(*share.columns), {outward, *inward}
        movable = inward and all(_equal(shares[name].rows, mine) for name in inward)
        yield Mlp(
            inward,
            outward,
            width=len(mine) if movable else -1,
            column_elements=shapes[outward][0] + sum(shapes[name][1] for name in inward),
            rest_elements=sum(
                math.prod(shapes[name]) for name in shares if name.startswith(f"{layer[0]}.") and name not in members
            ),
        )


def _equal(rows: Tensor | None, expected: Tensor) -> bool:
    return rows is not None and torch.equal(rows, expected)

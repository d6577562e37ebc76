"""The one place where a sharded product is computed, so that another kernel has a single place to go.

Stands for every linear layer of the loaded model: whole, column-parallel (this rank's output rows), or row-parallel
(this rank's input columns; the partial results are summed over the ranks, then the whole bias is added once).
"""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from serving.engine.distributed.collectives import Collectives


class ShardedLinear(nn.Module):
    """A linear layer of one rank. `collectives` is given for a row-parallel layer only."""

    def __init__(self, weight: Tensor, bias: Tensor | None, collectives: Collectives | None = None) -> None:
        """`weight`: [out, in] of this rank, possibly with no rows or columns; `bias`: [out]. Both may be on meta."""
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.collectives = collectives

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if self.collectives is None:
            return F.linear(x, self.weight, self.bias)
        total = self.collectives.all_reduce(F.linear(x, self.weight))
        return total if self.bias is None else total.add_(self.bias)

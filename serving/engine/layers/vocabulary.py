"""The token embedding and the output head, both split by vocabulary: each rank holds one range of token ids.

DeepSpeed leaves the embedding whole on every rank and sums full-vocabulary logits; here a lookup is one exact sum (all
ranks but one add zeros), and each rank computes the logits of its own tokens only. A tied head shares its storage.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from serving.engine.distributed.collectives import Collectives


@dataclass(frozen=True, slots=True)
class VocabSlice:
    """Token ids start to end - 1."""

    start: int
    end: int

    @classmethod
    def of_rank(cls, vocab_size: int, rank: int, world: int) -> "VocabSlice":
        """Nearly equal ranges in rank order; the first ranks take the remainder."""
        size, remainder = divmod(vocab_size, world)
        start = rank * size + min(rank, remainder)
        return cls(start, start + size + (rank < remainder))


class ShardedEmbedding(nn.Module):
    """Rows of the token embedding that belong to this rank."""

    def __init__(self, weight: Tensor, vocab: VocabSlice, collectives: Collectives, scale: float = 1.0) -> None:
        """`weight`: [end - start, hidden]; `scale` multiplies rows, rounded to the weight's format like Gemma's."""
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.vocab = vocab
        self.collectives = collectives
        self.scale = torch.tensor(scale, device="cpu").to(weight.dtype).item()

    def forward(self, input_ids: Tensor) -> Tensor:
        """int64 [...] -> [..., hidden], the same on every rank."""
        rows = self._rows(input_ids)
        return rows if self.scale == 1.0 else rows * self.scale

    def _rows(self, input_ids: Tensor) -> Tensor:
        if self.collectives.world == 1:
            return self._lookup(input_ids)
        elsewhere = (input_ids < self.vocab.start) | (input_ids >= self.vocab.end)
        rows = self._lookup((input_ids - self.vocab.start).masked_fill(elsewhere, 0))
        return self.collectives.all_reduce(rows.masked_fill_(elsewhere.unsqueeze(-1), 0))

    def _lookup(self, rows: Tensor) -> Tensor:
        return F.embedding(rows, self.weight)


class OutputHead(nn.Module):
    """Logits of this rank's tokens."""

    def __init__(self, weight: Tensor, bias: Tensor | None, multiplier: float, softcap: float | None) -> None:
        """`weight`: [end - start, hidden]; `bias`: [end - start]."""
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.multiplier = multiplier
        self.softcap = softcap

    def forward(self, hidden: Tensor) -> Tensor:
        """[S, hidden] -> float32 [S, end - start]."""
        logits = self._products(hidden).float()
        if self.multiplier != 1.0:
            logits = logits * self.multiplier
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def _products(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight, self.bias)

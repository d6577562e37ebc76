"""Where min-p, top-k and top-p cut off a row whose scores are split over the ranks: the least score that is kept.

The result is bit-identical in every batch: probabilities are whole numbers of a small unit, so their sums depend
neither on the number of ranks nor on an order. No request sizes what is gathered. For a small top-k that is its
candidates; else the threshold is searched among the bits of the scores, eight at a time, and the ranks add up how much
each of 256 ranges holds. A flat row costs what a peaked one does, no row is sorted, and a GPU is not waited for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from serving.engine.distributed.collectives import Collectives
from serving.engine.sampling.blockwise import blockwise
from serving.engine.sampling.exact import add, gather
from serving.messages import Sampling

CANDIDATES = 256
"""Gathered per rank and row at most."""
_RANGES = 256


class Cutoffs:
    """The thresholds of rows over a vocabulary of `vocab_size` ids, of which this rank has a slice."""

    def __init__(self, collectives: Collectives, vocab_size: int) -> None:
        self._collectives = collectives
        self._vocab_size = vocab_size
        self._units = 2.0 ** (62 - vocab_size.bit_length())
        """The weight of the likeliest token. As many as there are stay below 2**62."""

    def cuts(self, sampling: Sampling) -> bool:
        """Whether there is a threshold at all."""
        return sampling.min_p > 0 or self._top_k(sampling) > 0 or sampling.top_p < 1

    def _top_k(self, sampling: Sampling) -> int:
        """0 where it keeps all. Whatever a client sent, it is less than the vocabulary from here on."""
        return sampling.top_k if 0 < sampling.top_k < self._vocab_size else 0

    def least(self, scores: Tensor, settings: Sequence[Sampling]) -> Tensor:
        """float32 [S, 1]: the least score that each row keeps under min-p, top-k and top-p, in this order.

        Args:
            scores: float32 [S, slice], logits by temperature; minus infinity is never kept.
            settings: S of them. Collective: the same on all ranks.
        """
        rows = _Rows(scores, [self._top_k(s) for s in settings], [s.top_p for s in settings])
        if any(s.min_p > 0 or s.top_p < 1 for s in settings):
            rows.highest = gather(self._collectives, scores.amax(dim=1, keepdim=True)).amax(dim=0)
            rows.least = rows.highest + column([s.min_p for s in settings], scores).log()
        few = [0 < k <= CANDIDATES for k in rows.top_ks]
        many = [k > CANDIDATES for k in rows.top_ks]
        nucleus = [p < 1 and not gathered for p, gathered in zip(rows.top_ps, few, strict=True)]
        for concerned, threshold in ((few, self._of_few), (many, self._of_top_k), (nucleus, self._of_nucleus)):
            places = [i for i, concerns in enumerate(concerned) if concerns]
            if places:
                rows.raise_least(places, threshold(rows.at(places)))
        return rows.least

    def _of_few(self, rows: "_Rows") -> Tensor:
        """Top-k of at most CANDIDATES, then top-p: all that is kept is gathered, but for some equals of the last."""
        ordered = self._candidates(rows.scores, max(rows.top_ks))
        kth = ordered.gather(1, column(rows.top_ks, ordered, torch.int64) - 1)
        least = torch.maximum(rows.least, kth)
        if all(p == 1 for p in rows.top_ps):
            return least
        weights = _weights(rows.scores, rows.highest, least, self._units)
        total = add(self._collectives, weights.sum(dim=1, keepdim=True))
        reached = _weights(ordered, rows.highest, least, self._units).cumsum(dim=1)
        place = (reached < rows.share_of(total)).sum(dim=1, keepdim=True)
        # The nucleus may end among equals of the last that were not gathered; then nothing more is cut.
        ends = (place < ordered.shape[1]) & (column(rows.top_ps, ordered) < 1)
        return torch.where(ends, ordered.gather(1, place.clamp(max=ordered.shape[1] - 1)), least)

    def _candidates(self, scores: Tensor, count: int) -> Tensor:
        """float32 [S, world * count]: the `count` highest scores of each rank together, highest first."""
        # A slice may be smaller; minus infinity fills up what it lacks.
        best = torch.full((len(scores), count), float("-inf"), device=scores.device)
        mine = min(count, scores.shape[1])
        best[:, :mine] = scores.topk(mine, dim=1).values
        gathered = gather(self._collectives, best)
        return gathered.transpose(0, 1).flatten(1).sort(dim=1, descending=True).values

    def _of_top_k(self, rows: "_Rows") -> Tensor:
        """The score of the last of the top_k likeliest tokens."""
        wanted = column(rows.top_ks, rows.scores, torch.int64)
        ones = torch.ones((), dtype=torch.int64, device=rows.scores.device).expand_as(rows.scores)
        return torch.maximum(rows.least, self._search(rows.scores, ones, lambda _: wanted))

    def _of_nucleus(self, rows: "_Rows") -> Tensor:
        """The score of the last of the likeliest tokens that together reach top_p of what is kept so far."""
        weights = _weights(rows.scores, rows.highest, rows.least, self._units)
        return self._search(rows.scores, weights, rows.share_of)

    def _search(self, scores: Tensor, weights: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """float32 [S, 1]: the greatest score that has, with all above it, as much weight as `ask(total)` wants."""
        keys = _flipped(scores.view(torch.int32))
        leading = torch.full((len(scores), 1), -_RANGES // 2, dtype=torch.int32, device=scores.device)
        wanted = leading
        for shift in (24, 16, 8, 0):
            held = add(self._collectives, blockwise(partial(_held, shift), keys, weights, leading))
            reached = held.cumsum(dim=1)
            if shift == 24:
                wanted = ask(reached[:, -1:])
            # Only in a row of NaN is nothing reached; its draw means nothing, and must not end the others'.
            place = (reached < wanted).sum(dim=1, keepdim=True).clamp(max=_RANGES - 1)
            wanted = wanted - (reached - held).gather(1, place)
            leading = leading + (_RANGES - 1 - place).int()
            if shift:
                leading = leading << 8
        return _flipped(leading).view(torch.float32)


@dataclass(slots=True)
class _Rows:
    """Rows on their way through the cut-offs."""

    scores: Tensor
    """float32 [S, slice]."""
    top_ks: list[int]
    top_ps: list[float]
    highest: Tensor = field(init=False)
    """float32 [S, 1], over all ranks; only where min-p or top-p is asked for."""
    least: Tensor = field(init=False)
    """float32 [S, 1]: what is kept so far."""

    def __post_init__(self) -> None:
        self.least = self.highest = torch.full_like(self.scores[:, :1], float("-inf"))

    def at(self, places: list[int]) -> "_Rows":
        """Some of them; nothing is copied where that is all."""
        if len(places) == len(self.top_ks):
            return self
        index = torch.tensor(places).to(self.scores.device, non_blocking=True)
        rows = _Rows(self.scores[index], [self.top_ks[i] for i in places], [self.top_ps[i] for i in places])
        rows.highest, rows.least = self.highest[index], self.least[index]
        return rows

    def raise_least(self, places: list[int], least: Tensor) -> None:
        index = torch.tensor(places).to(least.device, non_blocking=True)
        self.least = self.least.index_copy(0, index, least)

    def share_of(self, total: Tensor) -> Tensor:
        """int64 [S, 1]: top_p of `total`, rounded up, at least 1 and no more than all."""
        shares = column(self.top_ps, total, torch.float64) * total
        return torch.minimum(shares.ceil().long().clamp(min=1), total)


def column(values: Sequence[float], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[len, 1] beside `like`; the host does not wait for a GPU to have it."""
    return torch.tensor(values, dtype=dtype).to(like.device, non_blocking=True)[:, None]


def _weights(scores: Tensor, highest: Tensor, least: Tensor, units: float) -> Tensor:
    """int64, like `scores`: probabilities in units, of which the likeliest token has that many; 0 below `least`."""

    def of_rows(scores: Tensor, highest: Tensor, least: Tensor) -> Tensor:
        return ((scores - highest).exp() * units).masked_fill(scores < least, 0.0).long()

    return blockwise(of_rows, scores, highest, least)


def _held(shift: int, keys: Tensor, weights: Tensor, leading: Tensor) -> Tensor:
    """int64 [S, 256]: the weight of those keys whose bits above `shift` are `leading` and a byte 255 to 0."""
    # Ranges 1 to 256 have the leading bits; 0 and 257 take in the keys that have not.
    ranges = ((keys >> shift) - (leading - 1)).clamp_(0, _RANGES + 1).long()
    held = torch.zeros(len(keys), _RANGES + 2, dtype=torch.int64, device=keys.device)
    return held.scatter_add_(1, ranges, weights)[:, 1:-1].flip(1)


def _flipped(bits: Tensor) -> Tensor:
    """The bits of a float32 as an int32 of the same order, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)

"""Chooses the next token of each row from logits that are split by vocabulary over the ranks.

Every decision is taken on every rank from the same gathered numbers, so all ranks end with the same ids without a
broadcast. What is gathered is small: one (value, id) pair a row for greedy and plain sampling, a few candidates for
top-k and top-p, a maximum and a sum for min-p and log-probabilities. On a GPU all of it stays there but the drawn ids
(and log-probabilities, and for top-p whether the candidates sufficed). Order: logit bias, penalties, `min_tokens`,
temperature, min-p, top-k, top-p, then Gumbel-max (see `noise`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from serving.engine.collectives import Collectives
from serving.engine.noise import gumbel
from serving.engine.penalties import adjust, adjusts
from serving.messages import Sampling, TokenLogprobs

CANDIDATES = 256
"""Gathered per rank and row for top-p at first; a distribution too flat for them has its whole row gathered."""

COLDEST = 1e-8
"""Temperatures and `top_p` below are 0: float32 logits lie so far apart that nothing but the likeliest is ever drawn,
and what is divided by them stays finite from here on."""


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """What the choice of one row's next token depends on, beside its logits."""

    sampling: Sampling
    tokens: Sequence[int]
    """Prompt and output so far; the drawn token's position is its length."""
    prompt_len: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """What one step drew, row by row."""

    tokens: list[int]
    logprobs: list[TokenLogprobs | None] | None
    """None when no row asked."""
    embeddings: Sequence[bytes] = ()
    """Vectors that the step completed, in order of rows."""


class Sampler:
    """Holds this rank's slice [vocab_start, vocab_end) of the vocabulary."""

    def __init__(
        self,
        collectives: Collectives,
        vocab_start: int,
        vocab_end: int,
        eos_ids: frozenset[int],
        device: torch.device | None = None,
    ) -> None:
        """`device`: where logits will be; the CPU when not told."""
        self._collectives = collectives
        self._start, self._end = vocab_start, vocab_end
        self._eos_ids = eos_ids
        self._widest = int(self._gather(torch.tensor([vocab_end - vocab_start], device=device)).max())
        """The longest slice of any rank: a whole row is gathered in this many columns."""

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Sampled:
        """Draw one token a row. `logits`: float32 [S, vocab_end - vocab_start], changed in place."""
        wanted = [i for i, row in enumerate(rows) if row.sampling.logprobs >= 0]
        raw = logits[wanted].clone() if wanted else None
        for i, row in enumerate(rows):
            if adjusts(row.sampling, len(row.tokens) - row.prompt_len):
                adjust(logits[i], row.sampling, row.tokens, row.prompt_len, self._start, self._eos_ids)
        self._shape(logits, rows)
        tokens = self._arg_max(logits)
        if raw is None:
            return Sampled(tokens, None)
        logprobs: list[TokenLogprobs | None] = [None] * len(rows)
        counts = [rows[i].sampling.logprobs for i in wanted]
        for i, found in zip(wanted, self._logprobs(raw, [tokens[i] for i in wanted], counts), strict=True):
            logprobs[i] = found
        return Sampled(tokens, logprobs)

    def _shape(self, logits: Tensor, rows: Sequence[SamplingRow]) -> None:
        """Temperature, cut-offs and noise, in place, on the rows that are not greedy."""
        drawn = [i for i, row in enumerate(rows) if not _is_greedy(row.sampling)]
        if not drawn:
            return
        settings = [rows[i].sampling for i in drawn]
        places = _moved(drawn, logits)
        scores = logits[places] / self._column([s.temperature for s in settings], logits)
        cut = [j for j, s in enumerate(settings) if s.top_k > 0 or s.top_p < 1 or s.min_p > 0]
        if cut:
            cuts = _moved(cut, logits)
            kept = scores[cuts]
            threshold = self._thresholds(kept, [settings[j] for j in cut])
            scores[cuts] = kept.masked_fill(kept < threshold, float("-inf"))
        seeds = [s.seed for s in settings]
        scores += gumbel(seeds, [len(rows[i].tokens) for i in drawn], self._start, scores.shape[1], scores.device)
        logits[places] = scores

    def _thresholds(self, scores: Tensor, settings: Sequence[Sampling]) -> Tensor:
        """float32 [S, 1]: the least score each row keeps under min-p, top-k and top-p, in this order."""
        least = self._least_min_p(scores, settings)
        ks = [s.top_k for s in settings]
        if any(ks):
            ordered = self._candidates(scores, max(ks))
            most = ordered.shape[1]
            k = _moved([k if 0 < k <= most else most for k in ks], scores)[:, None]
            limited = _moved([0 < k <= most for k in ks], scores)[:, None]
            least = torch.where(limited, torch.maximum(least, ordered.gather(1, k - 1)), least)
        if any(s.top_p < 1 for s in settings):
            least = self._least_top_p(scores, least, [s.top_p for s in settings])
        return least

    def _least_min_p(self, scores: Tensor, settings: Sequence[Sampling]) -> Tensor:
        least = torch.full((len(settings), 1), float("-inf"), device=scores.device)
        if any(s.min_p > 0 for s in settings):
            highest = self._gather(scores.amax(dim=1, keepdim=True)).amax(dim=0)
            least = highest + self._column([s.min_p for s in settings], scores).log()
        return least

    def _least_top_p(self, scores: Tensor, least: Tensor, top_ps: Sequence[float]) -> Tensor:
        """The score of the last token of each row's nucleus: the likeliest ones that together reach top_p."""
        ordered = self._candidates(scores, CANDIDATES)
        highest = ordered[:, :1]
        kept = (scores - highest).exp().masked_fill(scores < least, 0.0)
        total = self._gather(kept.sum(dim=1, keepdim=True)).sum(dim=0)
        targets = self._column(top_ps, scores)

        def before(values: Tensor) -> Tensor:
            """Probability of all that is likelier, for each of the sorted `values`."""
            share = (values - highest).exp().masked_fill(values < least, 0.0) / total
            return share.cumsum(dim=1) - share

        # The candidates are a prefix of the sorted row, but for those below the least candidate of a rank with more
        # to give. Whether a row's nucleus ends within them is seen by their sum; else the whole row is gathered.
        covered = self._covered(scores, ordered, before(ordered), targets)
        if not covered:
            ordered = self._candidates(scores, self._widest)
        nucleus = (before(ordered) < targets) & (ordered >= least)
        edge = ordered.masked_fill(~nucleus, float("inf")).amin(dim=1, keepdim=True)
        wanted = targets < 1
        return torch.where(wanted & edge.isfinite(), edge, least)

    def _covered(self, scores: Tensor, ordered: Tensor, before: Tensor, targets: Tensor) -> bool:
        """Whether every row's nucleus ends above what any rank held back. The same answer on all ranks."""
        count = min(CANDIDATES, scores.shape[1])
        held_back = scores.topk(count, dim=1).values[:, -1:] if count < scores.shape[1] else None
        missing = torch.full_like(scores[:, :1], float("-inf")) if held_back is None else held_back
        limit = self._gather(missing).amax(dim=0)
        outside = (before >= targets) & (ordered >= limit)
        return bool((outside.any(dim=1, keepdim=True) | (targets >= 1) | limit.isneginf()).all())

    def _candidates(self, scores: Tensor, count: int) -> Tensor:
        """float32 [S, n]: the `count` highest scores of each rank together, sorted, highest first."""
        # Ranks hold slices of different sizes; -inf fills up what a smaller one lacks.
        best = torch.full((len(scores), count), float("-inf"), device=scores.device)
        mine = min(count, scores.shape[1])
        best[:, :mine] = scores.topk(mine, dim=1).values
        gathered = self._gather(best)
        return gathered.transpose(0, 1).flatten(1).sort(dim=1, descending=True).values

    def _arg_max(self, scores: Tensor) -> list[int]:
        """Global arg max of each row; of equals the lowest id."""
        value, index = scores.max(dim=1)
        pairs = self._gather(torch.stack([value, (index + self._start).float()], dim=1))
        winner = pairs[:, :, 0].argmax(dim=0)
        ids: list[int] = pairs[:, :, 1].gather(0, winner[None])[0].long().tolist()
        return ids

    def _logprobs(self, raw: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
        """Log-probabilities of the drawn and of the likeliest tokens, from untouched logits float32 [S, slice]."""
        highest = self._gather(raw.amax(dim=1, keepdim=True)).amax(dim=0)
        total = self._gather((raw - highest).exp().sum(dim=1, keepdim=True)).sum(dim=0)
        norm = (highest + total.log())[:, 0]
        chosen = torch.zeros(len(tokens), 1, device=raw.device)
        for i, token in enumerate(tokens):
            if self._start <= token < self._end:
                chosen[i] = raw[i, token - self._start]
        mine = (self._gather(chosen).sum(dim=0)[:, 0] - norm).tolist()
        values, ids = self._likeliest(raw, max(counts))
        values = values - norm[:, None]
        return [
            TokenLogprobs(mine[i], list(zip(ids[i, :n].tolist(), values[i, :n].tolist(), strict=True)))
            for i, n in enumerate(counts)
        ]

    def _likeliest(self, raw: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Values float32 [S, count] and ids int64 [S, count] of the highest logits over all ranks."""
        best = torch.full((len(raw), count, 2), float("-inf"), device=raw.device)
        mine = min(count, raw.shape[1])
        top = raw.topk(mine, dim=1)
        best[:, :mine, 0] = top.values
        best[:, :mine, 1] = (top.indices + self._start).float()
        gathered = self._gather(best).transpose(0, 1).flatten(1, 2)
        order = gathered[:, :, 0].argsort(dim=1, descending=True, stable=True)[:, :count]
        return gathered[:, :, 0].gather(1, order), gathered[:, :, 1].gather(1, order).long()

    def _gather(self, mine: Tensor) -> Tensor:
        """float32 [...] of every rank as [world, ...], bit for bit the same on all ranks.

        One all-reduce of a buffer that is zero but for the own part: adding zeros is exact, and the bare all-reduce is
        the cheapest collective there is. float32 holds ids exactly below 2**24.
        """
        everyone = torch.zeros(self._collectives.world, *mine.shape, dtype=torch.float32, device=mine.device)
        everyone[self._collectives.rank] = mine
        return self._collectives.all_reduce(everyone)

    @staticmethod
    def _column(values: Sequence[float], like: Tensor) -> Tensor:
        return _moved(values, like).to(like.dtype)[:, None]


def _is_greedy(sampling: Sampling) -> bool:
    """Whether the likeliest token is taken always (of equals the lowest id), as it is or in the limit."""
    return min(sampling.temperature, sampling.top_p) < COLDEST


def _moved(values: Sequence[float], like: Tensor) -> Tensor:
    """A tensor of `values` beside `like`; the host does not wait for a GPU to have it."""
    return torch.tensor(values).to(like.device, non_blocking=True)

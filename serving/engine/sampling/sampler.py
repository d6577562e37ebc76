"""Chooses the next token of each row from logits that are split by vocabulary over the ranks.

Every decision is taken on every rank from the same gathered numbers, so all ranks end with the same ids without a
broadcast. What is gathered is small, whatever was asked for: one (value, id) pair a row for greedy and plain sampling,
what `cutoffs` needs, a maximum, a sum and the likeliest for log-probabilities. On a GPU all of it stays there but the
drawn ids (and log-probabilities). Order: logit bias, penalties, `min_tokens`, temperature, min-p, top-k, top-p, then
Gumbel-max (see `gumbel`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from serving.engine.distributed.collectives import Collectives
from serving.engine.sampling.cutoffs import Cutoffs, column
from serving.engine.sampling.exact import gather
from serving.engine.sampling.gumbel import gumbel
from serving.engine.sampling.logits import History, adjust, adjusts
from serving.messages import Sampling, TokenLogprobs

COLDEST = 1e-8
"""Temperatures and `top_p` below are 0: float32 logits lie so far apart that nothing but the likeliest is ever drawn,
and what is divided by them stays finite from here on."""


@dataclass(slots=True)
class SamplingRow:
    """What the choice of one row's next token depends on, beside its logits. Lives as long as its sequence."""

    sampling: Sampling
    tokens: Sequence[int]
    """Prompt and output so far, growing; the drawn token's position is its length."""
    prompt_len: int
    history: History | None = None
    """The sampler's own: made at the first draw where it is needed."""


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
        self._vocab_size = int(gather(collectives, torch.tensor([vocab_end], device=device)).max())
        self._cutoffs = Cutoffs(collectives, self._vocab_size)

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Sampled:
        """Draw one token a row. `logits`: float32 [S, vocab_end - vocab_start], contiguous, changed in place."""
        wanted = [i for i, row in enumerate(rows) if row.sampling.logprobs >= 0]
        raw = logits[wanted].clone() if wanted else None
        changed = [(i, self._history(row)) for i, row in enumerate(rows) if adjusts(row.sampling)]
        if changed:
            adjust(logits, changed)
        self._shape(logits, rows)
        tokens = self._arg_max(logits)
        if raw is None:
            return Sampled(tokens, None)
        logprobs: list[TokenLogprobs | None] = [None] * len(rows)
        counts = [rows[i].sampling.logprobs for i in wanted]
        for i, found in zip(wanted, self._logprobs(raw, [tokens[i] for i in wanted], counts), strict=True):
            logprobs[i] = found
        return Sampled(tokens, logprobs)

    def _history(self, row: SamplingRow) -> History:
        """The row's, with all its tokens."""
        if row.history is None:
            row.history = History(row.sampling, row.prompt_len, range(self._start, self._end), self._eos_ids)
        row.history.catch_up(row.tokens)
        return row.history

    def _shape(self, logits: Tensor, rows: Sequence[SamplingRow]) -> None:
        """Temperature, cut-offs and noise, in place, on the rows that are not greedy."""
        drawn = [i for i, row in enumerate(rows) if not _is_greedy(row.sampling)]
        if not drawn:
            return
        settings = [rows[i].sampling for i in drawn]
        places = _moved(drawn, logits)
        scores = logits[places] / column([s.temperature for s in settings], logits)
        cut = [j for j, s in enumerate(settings) if self._cutoffs.cuts(s)]
        if cut:
            cuts = _moved(cut, logits)
            kept = scores[cuts]
            threshold = self._cutoffs.least(kept, [settings[j] for j in cut])
            scores[cuts] = kept.masked_fill(kept < threshold, float("-inf"))
        seeds = [s.seed for s in settings]
        scores += gumbel(seeds, [len(rows[i].tokens) for i in drawn], self._start, scores.shape[1], scores.device)
        logits[places] = scores

    def _arg_max(self, scores: Tensor) -> list[int]:
        """Global arg max of each row; of equals the lowest id."""
        value, index = scores.max(dim=1)
        pairs = gather(self._collectives, torch.stack([value, (index + self._start).float()], dim=1))
        winner = pairs[:, :, 0].argmax(dim=0)
        ids: list[int] = pairs[:, :, 1].gather(0, winner[None])[0].long().tolist()
        return ids

    def _logprobs(self, raw: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
        """Log-probabilities of the drawn and of the likeliest tokens, from untouched logits float32 [S, slice]."""
        highest = gather(self._collectives, raw.amax(dim=1, keepdim=True)).amax(dim=0)
        total = gather(self._collectives, (raw - highest).exp().sum(dim=1, keepdim=True)).sum(dim=0)
        norm = (highest + total.log())[:, 0]
        chosen = torch.zeros(len(tokens), 1, device=raw.device)
        for i, token in enumerate(tokens):
            if self._start <= token < self._end:
                chosen[i] = raw[i, token - self._start]
        mine = (gather(self._collectives, chosen).sum(dim=0)[:, 0] - norm).tolist()
        values, ids = self._likeliest(raw, min(max(counts), self._vocab_size))
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
        gathered = gather(self._collectives, best).transpose(0, 1).flatten(1, 2)
        order = gathered[:, :, 0].argsort(dim=1, descending=True, stable=True)[:, :count]
        return gathered[:, :, 0].gather(1, order), gathered[:, :, 1].gather(1, order).long()


def _is_greedy(sampling: Sampling) -> bool:
    """Whether the likeliest token is taken always (of equals the lowest id), as it is or in the limit."""
    return min(sampling.temperature, sampling.top_p) < COLDEST


def _moved(values: Sequence[int], like: Tensor) -> Tensor:
    """A tensor of `values` beside `like`; the host does not wait for a GPU to have it."""
    return torch.tensor(values).to(like.device, non_blocking=True)

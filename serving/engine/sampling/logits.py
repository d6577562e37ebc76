"""What changes a row's logits before the draw and needs no other rank: bias, penalties, forbidden ends.

A sequence's `History` is made at its first draw; from then on a step costs what the drawn token changes, and a handful
of operations for all rows together. All of it is sparse: no more numbers than the request and its tokens have.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serving.messages import Sampling

LEAST_REPETITION = 1e-20
"""Repetition penalties below count as this: logits that are divided by it are beyond all others, and finite."""

Ids = NDArray[np.int64]
Numbers = NDArray[np.float32]


def adjusts(sampling: Sampling) -> bool:
    """Whether logits are ever changed before the temperature."""
    penalties = sampling.repetition_penalty != 1.0 or sampling.presence_penalty or sampling.frequency_penalty
    return bool(penalties or sampling.logit_bias or sampling.min_tokens)


class Tally:
    """The distinct tokens of a sequence that a rank holds, and how often each came."""

    def __init__(self, vocab: range) -> None:
        """`vocab`: the rank's ids; those outside are not counted."""
        self._vocab = vocab
        self._places: dict[int, int] = {}
        self._ids = np.zeros(16, dtype=np.int64)
        self._counts = np.zeros(16, dtype=np.float32)

    def count(self, tokens: Iterable[int]) -> None:
        """Some more tokens."""
        for token, times in Counter(tokens).items():
            if token in self._vocab:
                place = self._places.setdefault(token, len(self._places))
                self._make_room(place)
                self._ids[place] = token - self._vocab.start
                self._counts[place] += times

    def _make_room(self, place: int) -> None:
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])

    @property
    def ids(self) -> Ids:
        """From the rank's first on, in order of appearance."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> Numbers:
        """In the order of `ids`."""
        return self._counts[: len(self._places)]


class History:
    """What one sequence's parameters and tokens do to its logits, as numbers that are ready to be added."""

    def __init__(self, sampling: Sampling, prompt_len: int, vocab: range, eos_ids: frozenset[int]) -> None:
        """`vocab`: ids of this rank. `eos_ids`: those that end a sequence unless `ignore_eos`."""
        self.sampling = sampling
        self._prompt_len = prompt_len
        bias = {token - vocab.start: value for token, value in sampling.logit_bias.items() if token in vocab}
        self.biased = np.array(list(bias), dtype=np.int64)
        self.biases = np.array(list(bias.values()), dtype=np.float32)
        ends = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else eos_ids)
        self._ends = np.array([token - vocab.start for token in sorted(ends) if token in vocab], dtype=np.int64)
        self._known = 0
        self.seen = Tally(vocab)
        """Of prompt and output, where repetition is penalised."""
        self._emitted = Tally(vocab)
        """Of the output, where presence or frequency is."""

    def catch_up(self, tokens: Sequence[int]) -> None:
        """Take in what came since the last time. `tokens`: prompt, then output, of which only the end is looked at."""
        start, self._known = self._known, len(tokens)
        if self.sampling.repetition_penalty != 1.0:
            self.seen.count(tokens[start:])
        if self.sampling.presence_penalty or self.sampling.frequency_penalty:
            self._emitted.count(tokens[max(start, self._prompt_len) :])

    @property
    def repetition(self) -> Numbers:
        """The penalty of each token in `seen`."""
        return np.full(len(self.seen.ids), max(self.sampling.repetition_penalty, LEAST_REPETITION), dtype=np.float32)

    @property
    def emitted(self) -> Ids:
        """Tokens that `emission` is taken from."""
        return self._emitted.ids

    @property
    def emission(self) -> Numbers:
        """What presence and frequency take from the logit of each token in `emitted`."""
        sampling = self.sampling
        return np.float32(sampling.frequency_penalty) * self._emitted.counts + np.float32(sampling.presence_penalty)

    @property
    def forbidden(self) -> Ids:
        """Tokens that must not be drawn now: the ends, up to `min_tokens`."""
        early = self._known - self._prompt_len < self.sampling.min_tokens
        return self._ends if early else self._ends[:0]


def adjust(logits: Tensor, histories: Sequence[tuple[int, History]]) -> None:
    """Apply bias, penalties and `min_tokens`, in this order, in place.

    Args:
        logits: float32 [S, slice], contiguous.
        histories: rows, and what is to be done to each.
    """
    width, flat = logits.shape[1], logits.view(-1)

    def everywhere(ids: list[Ids]) -> Tensor:
        """Places in `flat` of each row's ids."""
        places = [row * width + mine for (row, _), mine in zip(histories, ids, strict=True)]
        return torch.from_numpy(np.concatenate(places)).to(logits.device, non_blocking=True)

    def beside(numbers: list[Numbers]) -> Tensor:
        return torch.from_numpy(np.concatenate(numbers)).to(logits.device, non_blocking=True)

    every = [history for _, history in histories]
    flat.index_add_(0, everywhere([h.biased for h in every]), beside([h.biases for h in every]))
    seen = everywhere([h.seen.ids for h in every])
    flat.index_copy_(0, seen, _less_likely(flat[seen], beside([h.repetition for h in every])))
    flat.index_add_(0, everywhere([h.emitted for h in every]), beside([h.emission for h in every]), alpha=-1)
    flat.index_fill_(0, everywhere([h.forbidden for h in every]), float("-inf"))


def _less_likely(values: Tensor, penalties: Tensor) -> Tensor:
    """As CTRL (Keskar et al., 2019) and Hugging Face have it: whatever their sign."""
    return torch.where(values > 0, values / penalties, values * penalties)

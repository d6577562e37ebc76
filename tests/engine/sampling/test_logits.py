"""Penalties over growing sequences, and what a step may cost: new tokens are looked at once, in few operations."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from serving.engine.distributed.collectives import make_collectives
from serving.engine.sampling.logits import Tally
from serving.engine.sampling.sampler import Sampler, SamplingRow
from serving.messages import Sampling
from tests.engine.sampling.test_sampler import EOS, VOCAB, by_definition

EVERYTHING: dict[str, Any] = {
    "temperature": 0.0,
    "repetition_penalty": 1.3,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.7,
    "logit_bias": {i: i / 1000 for i in range(1024)},
    "min_tokens": 8,
    "stop_token_ids": (5, 6),
}


class Watched(list[int]):
    """Tokens that know how many of them were looked at."""

    looked_at = 0

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        self.looked_at += len(found) if isinstance(place, slice) else 1
        return found

    def __iter__(self) -> Iterator[int]:
        self.looked_at += len(self)
        return super().__iter__()


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts torch's operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def sampler() -> Sampler:
    return Sampler(make_collectives(0, 1, True), 0, VOCAB, EOS)


def operations(count: int, settings: dict[str, Any]) -> int:
    """Of one step of `count` rows, behind a first one that prepares them."""
    drawing, logits = sampler(), torch.zeros(count, VOCAB)
    rows = [SamplingRow(Sampling(seed=i, max_tokens=99, **settings), [3, 4, 4, 7, i], 2) for i in range(count)]
    drawing.sample(logits.clone(), rows)
    mine = logits.clone()
    with Operations() as counted:  # type: ignore[no-untyped-call]
        drawing.sample(mine, rows)
    return int(counted.count)


def test_a_tally_holds_the_rank_s_own_tokens_only() -> None:
    tally = Tally(range(10, 20))
    tally.count([9, 10, 19, 20, 10])
    tally.count([19])
    assert tally.ids.tolist() == [0, 9]
    assert tally.counts.tolist() == [2, 2]


def test_a_tally_grows_with_what_it_counts() -> None:
    tally = Tally(range(1000))
    for token in range(1000):
        tally.count([token, 0])
    assert tally.ids.tolist() == list(range(1000))
    assert tally.counts.tolist() == [1001] + [1] * 999


def test_a_growing_sequence_is_penalised_as_by_definition_at_each_length() -> None:
    torch.manual_seed(1)
    drawing, tokens = sampler(), [3, 4, 4, 7, 5]
    row = SamplingRow(Sampling(seed=1, max_tokens=99, **EVERYTHING), tokens, 3)
    for _ in range(20):
        logits = torch.randn(1, VOCAB) * 3
        expected = by_definition(logits[0], row)
        assert drawing.sample(logits, [row]).tokens == [expected]
        tokens.append(expected)


def test_a_sequence_met_in_the_middle_is_penalised_as_one_seen_from_the_start() -> None:
    torch.manual_seed(2)
    drawing, tokens = sampler(), [3, 4, 4, 7, 5]
    sampling = Sampling(seed=1, max_tokens=99, **EVERYTHING)
    known = SamplingRow(sampling, tokens, 3)
    for _ in range(12):
        logits = torch.randn(1, VOCAB)
        [token] = drawing.sample(logits.clone(), [known]).tokens
        assert drawing.sample(logits, [SamplingRow(sampling, list(tokens), 3)]).tokens == [token]
        tokens.append(token)


def test_a_step_looks_at_new_tokens_only() -> None:
    drawing, tokens = sampler(), Watched(range(1000))
    row = SamplingRow(Sampling(seed=1, max_tokens=99, **EVERYTHING), tokens, 300)
    drawing.sample(torch.zeros(1, VOCAB), [row])
    tokens.looked_at = 0
    for step in range(5):
        tokens.append(step)
        drawing.sample(torch.zeros(1, VOCAB), [row])
    assert tokens.looked_at <= 2 * 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_entries_and_rows_do_not_add_operations(temperature: float) -> None:
    plain = operations(8, {"temperature": temperature})
    little = operations(8, {**EVERYTHING, "temperature": temperature, "logit_bias": {3: 1.0}})
    assert little <= plain + 40
    assert operations(8, {**EVERYTHING, "temperature": temperature}) == little
    assert operations(8, {**EVERYTHING, "temperature": temperature}) <= operations(
        1, {**EVERYTHING, "temperature": temperature}
    )

"""The sampler on real ranks: a draw is the same for every number of them, and no request sizes what they exchange."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from serving.engine.distributed.collectives import Collectives
from serving.engine.layers.vocabulary import VocabSlice
from serving.engine.sampling.cutoffs import Cutoffs
from serving.engine.sampling.exact import add
from serving.engine.sampling.sampler import Sampler, SamplingRow
from serving.messages import Sampling, Submit
from tests.distributed.ranks import RankPool
from tests.distributed.scripted import run_script
from tests.engine.tiny_models import VOCAB as TINY_VOCAB
from tests.engine.tiny_models import save_model

VOCAB = 5003
CUTS: list[dict[str, Any]] = [
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 40, "top_p": 0.5},
    {"top_k": 256, "top_p": 0.999},
    {"top_k": 257},
    {"top_k": 4000, "top_p": 0.9, "min_p": 1e-5},
    {"top_k": VOCAB - 1},
    {"top_p": 1e-6},
    {"top_p": 0.5},
    {"top_p": 0.9999999},
    {"top_p": 1 - 2**-53},
    {"min_p": 0.3},
    {"min_p": 0.01, "top_p": 0.95},
    {"top_k": 3000, "temperature": 1e-8},
]
SPREADS = (0.0, 0.01, 3.0, 50.0)
"""Standard deviations: equal logits, a flat row, a usual one, one that is certain."""
GIB = 2**30


class Counting:
    """Collectives that note how many numbers went over them."""

    def __init__(self, collectives: Collectives) -> None:
        self._collectives = collectives
        self.rank, self.world = collectives.rank, collectives.world
        self.sums: list[int] = []

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self.sums.append(tensor.numel())
        return self._collectives.all_reduce(tensor)


def scores(vocab_size: int, *, rounded: bool) -> Tensor:
    """A row for each cut and spread. `rounded`: as bfloat16 has them, with many equals."""
    numbers = torch.Generator().manual_seed(7)
    rows = torch.randn(len(SPREADS) * len(CUTS), vocab_size, generator=numbers)
    rows *= torch.tensor(SPREADS).repeat_interleave(len(CUTS))[:, None]
    return rows.bfloat16().float() if rounded else rows


def slice_of(collectives: Collectives, rows: Tensor) -> tuple[VocabSlice, Tensor]:
    vocab = VocabSlice.of_rank(rows.shape[1], collectives.rank, collectives.world)
    return vocab, rows[:, vocab.start : vocab.end].clone()


def asked() -> list[Sampling]:
    return [Sampling(seed=i, max_tokens=9, **cut) for _ in SPREADS for i, cut in enumerate(CUTS)]


def thresholds(collectives: Collectives, rounded: bool) -> list[float]:
    """Read as integers by the caller's `==`: no two different float32 are equal here but the two zeros."""
    _, mine = slice_of(collectives, scores(VOCAB, rounded=rounded))
    found: list[float] = Cutoffs(collectives, VOCAB).least(mine, asked())[:, 0].tolist()
    return found


def draws(collectives: Collectives, rounded: bool) -> list[int]:
    vocab, mine = slice_of(collectives, scores(VOCAB, rounded=rounded))
    rows = [SamplingRow(sampling, [1, 2, 3], 2) for sampling in asked()]
    return Sampler(collectives, vocab.start, vocab.end, frozenset()).sample(mine, rows).tokens


def exchanged(collectives: Collectives, vocab_size: int, settings: dict[str, Any], spread: float) -> list[int]:
    """Numbers that each collective of one row's draw takes."""
    counting = Counting(collectives)
    vocab, mine = slice_of(collectives, scores(vocab_size, rounded=False)[-1:] * spread)
    sampler = Sampler(counting, vocab.start, vocab.end, frozenset())  # type: ignore[arg-type]
    counting.sums.clear()
    sampler.sample(mine, [SamplingRow(Sampling(seed=1, max_tokens=9, **settings), [1, 2, 3], 2)])
    return counting.sums


def by_definition(row: Tensor, sampling: Sampling) -> float:
    """The least score kept, from the whole row, in float64."""
    least = float("-inf")
    if sampling.min_p > 0:
        least = float(row.max() + torch.tensor(sampling.min_p).log())
    if 0 < sampling.top_k < len(row):
        least = max(least, float(row.topk(sampling.top_k).values[-1]))
    if sampling.top_p < 1:
        kept = row[row >= least].sort(descending=True).values.double()
        before = kept.softmax(0).cumsum(0).roll(1)
        before[0] = 0
        least = float(kept[before < sampling.top_p][-1])
    return least


def large_sums(collectives: Collectives) -> list[int]:
    mine = torch.tensor([2**62 // collectives.world - 1, 2**53 + 1, 1, 0]) + collectives.rank
    sums: list[int] = add(collectives, mine).tolist()
    return sums


@contextmanager
def little_memory(more: int) -> Iterator[None]:
    """This process may map no more than it has and `more` bytes."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def run_in_little_memory(collectives: Collectives, folder: Path, script: Any) -> dict[str, Any]:
    with little_memory(GIB):
        return run_script(collectives, folder, script, {})


def test_whole_numbers_are_added_exactly(ranks3: RankPool) -> None:
    assert ranks3.run(large_sums) == [[2**62 // 3 * 3, 3 * 2**53 + 6, 6, 3]] * 3


@pytest.mark.parametrize("rounded", [False, True])
def test_thresholds_are_those_of_the_definition_to_the_bit(ranks1: RankPool, rounded: bool) -> None:
    [found] = ranks1.run(thresholds, rounded)
    rows = zip(scores(VOCAB, rounded=rounded), asked(), strict=True)
    assert found == [by_definition(row, sampling) for row, sampling in rows]


@pytest.mark.parametrize("rounded", [False, True])
def test_the_number_of_ranks_changes_no_threshold_and_no_draw(
    ranks1: RankPool, ranks2: RankPool, ranks3: RankPool, rounded: bool
) -> None:
    for function in (thresholds, draws):
        [alone] = ranks1.run(function, rounded)
        assert ranks2.run(function, rounded) == [alone] * 2
        assert ranks3.run(function, rounded) == [alone] * 3


@pytest.mark.parametrize(
    "settings",
    [{"top_k": k} for k in (256, 257, 4999, 100_000_000, 2**31 - 1)]
    + [{"top_p": p} for p in (0.01, 0.9, 0.999999)]
    + [{"top_k": 4000, "top_p": 0.9, "min_p": 1e-9}, {"logprobs": 20}],
)
def test_neither_the_vocabulary_nor_flatness_sizes_what_is_exchanged(
    ranks2: RankPool, settings: dict[str, Any]
) -> None:
    few = ranks2.run(exchanged, 5_000, settings, 1.0)
    assert max(few[0]) <= 4 * 256
    assert len(few[0]) <= 12
    for vocab_size, spread in ((5_000, 0.001), (50_000, 1.0), (50_000, 0.001)):
        if settings.get("top_k", 0) < 5_000:  # of a larger vocabulary it cuts something off
            assert ranks2.run(exchanged, vocab_size, settings, spread) == few


def test_a_top_k_beyond_all_memory_is_answered_and_the_group_serves_on(ranks2: RankPool, tmp_path: Path) -> None:
    """8 GiB and more would be asked for a gather of the candidates; there is 1."""
    save_model("llama, tied", tmp_path)
    tops = [0, TINY_VOCAB, TINY_VOCAB + 1, 100_000_000, 2**31 - 1, 0]
    script = {
        3 * i: [
            Submit(id=str(i), prompt=[5, 6, 7], sampling=Sampling(seed=9, max_tokens=8, ignore_eos=True, top_k=top_k))
        ]
        for i, top_k in enumerate(tops)
    }
    answers = ranks2.run(run_in_little_memory, tmp_path, script)[0]
    assert set(answers["ends"].values()) == {"length"}
    assert all(answers["tokens"][str(i)] == answers["tokens"]["0"] for i in range(len(tops)))

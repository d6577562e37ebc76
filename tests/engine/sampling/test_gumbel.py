"""The noise is a function of (seed, position, id), and its draws follow the distribution."""

import torch

from serving.engine.sampling.gumbel import gumbel, uniform

CPU = torch.device("cpu")


def test_a_slice_of_the_vocabulary_has_the_noise_of_the_whole() -> None:
    whole = gumbel([7, 8], [3, 4], 0, 100, CPU)
    assert torch.equal(gumbel([7, 8], [3, 4], 40, 25, CPU), whole[:, 40:65])
    assert torch.equal(gumbel([8], [4], 0, 100, CPU), whole[1:])


def test_seed_position_and_id_each_change_the_noise() -> None:
    base = gumbel([1], [1], 0, 50, CPU)
    for other in (gumbel([2], [1], 0, 50, CPU), gumbel([1], [2], 0, 50, CPU), gumbel([1], [1], 1, 50, CPU)):
        assert not (base == other).any()


def test_noise_is_finite_or_never_wins_at_the_extremes_of_seeds() -> None:
    noise = gumbel([0, 2**63 - 1, 2**62], [0, 1, 10**6], 0, 50_000, CPU)
    assert not noise.isnan().any()
    assert not noise.isposinf().any()


def test_no_bits_become_0_or_1() -> None:
    """Whatever bits the low 24 are: the sum with the high ones is least for zeros and greatest for ones."""
    high = torch.arange(2**24, dtype=torch.int64)
    for low in (0, 2**24 - 1):
        numbers = uniform((high - 2**24 * (high >= 2**23)) << 40 | low)
        assert numbers.min() > 0
        assert numbers.max() < 1


def test_no_noise_of_67_million_draws_is_infinite() -> None:
    """2**26 counters of one seed; were the greatest uniform rounded to 1, two of them would have infinite noise."""
    for position in range(64):
        noise = gumbel([25798849], [position], 0, 2**20, CPU)
        assert noise.isfinite().all(), position


def test_a_certain_token_is_drawn_whatever_its_noise() -> None:
    certain, position = 7042, 5
    scores = torch.full((49_152,), float("-inf"))
    scores[certain] = 0.0
    assert int((scores + gumbel([25798849], [position], 0, 49_152, CPU)[0]).argmax()) == certain


def test_draws_follow_the_softmax() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.08, 0.02])
    draws = 40_000
    noise = gumbel([11] * draws, list(range(draws)), 0, 5, CPU)
    counts = torch.bincount((probabilities.log() + noise).argmax(dim=1), minlength=5)
    expected = probabilities * draws
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 18.5, "0.1 % quantile of chi-square with 4 degrees of freedom"

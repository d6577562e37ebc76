"""The sampler against the definition written out over the whole vocabulary, for one rank (more: tests/distributed)."""

import pytest
import torch
from torch import Tensor

from serving.engine.distributed.collectives import make_collectives
from serving.engine.sampling.cutoffs import CANDIDATES
from serving.engine.sampling.gumbel import gumbel
from serving.engine.sampling.sampler import Sampler, SamplingRow
from serving.messages import Sampling

VOCAB = 1500
EOS = frozenset({2})


def by_definition(logits: Tensor, row: SamplingRow) -> int:
    """Order: bias, penalties, min_tokens, temperature, min-p, top-k, top-p, Gumbel-max."""
    s, x = row.sampling, logits.clone()
    output = list(row.tokens[row.prompt_len :])
    for token, bias in s.logit_bias.items():
        x[token] += bias
    for token in set(row.tokens):
        x[token] = x[token] / s.repetition_penalty if x[token] > 0 else x[token] * s.repetition_penalty
    for token in set(output):
        x[token] -= s.presence_penalty + s.frequency_penalty * output.count(token)
    if len(output) < s.min_tokens:
        for token in set(s.stop_token_ids) | (set() if s.ignore_eos else EOS):
            x[token] = float("-inf")
    if s.temperature == 0:
        return int(x.argmax())
    x = x / s.temperature
    if s.min_p > 0:
        p = x.softmax(0)
        x = x.masked_fill(p < s.min_p * p.max(), float("-inf"))
    if s.top_k > 0:
        x = x.masked_fill(x < x.topk(min(s.top_k, VOCAB)).values[-1], float("-inf"))
    if s.top_p < 1:
        order = x.argsort(descending=True, stable=True)
        p = x[order].softmax(0)
        drop = order[(p.cumsum(0) - p) >= s.top_p]
        x[drop] = float("-inf")
    return int((x + gumbel([s.seed], [len(row.tokens)], 0, VOCAB, x.device)[0]).argmax())


CASES: dict[str, dict[str, object]] = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "hot": {"temperature": 1.7},
    "top_k": {"top_k": 5},
    "top_k of many": {"top_k": 700},
    "top_k of all but one": {"top_k": VOCAB - 1},
    "top_k of the vocabulary": {"top_k": VOCAB},
    "top_k over the vocabulary": {"top_k": 2**31 - 1},
    "all cut-offs of many": {"top_k": 700, "top_p": 0.95, "min_p": 0.0001, "temperature": 1.9},
    "top_p": {"top_p": 0.6},
    "top_p of nearly everything": {"top_p": 0.999, "temperature": 3.0},
    "min_p": {"min_p": 0.2},
    "all cut-offs": {"top_k": 40, "top_p": 0.8, "min_p": 0.01, "temperature": 0.8},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.7, "temperature": 0.0},
    "bias": {"logit_bias": {3: 50.0}, "temperature": 0.0},
    "min_tokens": {"min_tokens": 9, "stop_token_ids": (5,), "logit_bias": {2: 90.0, 5: 80.0, 6: 70.0}},
    "min_tokens with ignore_eos": {"min_tokens": 9, "ignore_eos": True, "logit_bias": {2: 90.0}},
}


def rows(kind: dict[str, object], count: int = 40) -> list[SamplingRow]:
    return [
        SamplingRow(
            Sampling(seed=1000 + i, max_tokens=99, **kind),  # type: ignore[arg-type]
            [3, 4, 4, 7, 7, 7, i],
            2,
        )
        for i in range(count)
    ]


def sampler() -> Sampler:
    return Sampler(make_collectives(0, 1, True), 0, VOCAB, EOS)


@pytest.mark.parametrize("name", CASES)
def test_a_draw_equals_its_definition(name: str) -> None:
    torch.manual_seed(1)
    asked = rows(CASES[name])
    logits = torch.randn(len(asked), VOCAB) * 3
    expected = [by_definition(logits[i], row) for i, row in enumerate(asked)]
    assert sampler().sample(logits.clone(), asked).tokens == expected


def test_rows_of_all_kinds_in_one_batch_draw_as_each_alone() -> None:
    torch.manual_seed(2)
    asked = [row for kind in CASES.values() for row in rows(kind, 3)]
    logits = torch.randn(len(asked), VOCAB) * 3
    together = sampler().sample(logits.clone(), asked).tokens
    alone = [sampler().sample(logits[i : i + 1].clone(), [row]).tokens[0] for i, row in enumerate(asked)]
    assert together == alone


def test_a_nucleus_wider_than_the_candidates_is_still_exact() -> None:
    torch.manual_seed(3)
    asked = rows({"top_p": 0.9})
    logits = torch.randn(len(asked), VOCAB) * 0.01
    assert int(0.9 * VOCAB) > CANDIDATES
    expected = [by_definition(logits[i], row) for i, row in enumerate(asked)]
    assert sampler().sample(logits.clone(), asked).tokens == expected


def test_logprobs_are_those_of_the_raw_logits() -> None:
    torch.manual_seed(4)
    asked = [*rows({"logprobs": 3, "repetition_penalty": 1.5}, 2), *rows({}, 1), *rows({"logprobs": 0}, 1)]
    logits = torch.randn(4, VOCAB) * 3
    truth = logits.log_softmax(1)
    sampled = sampler().sample(logits.clone(), asked)
    assert sampled.logprobs is not None
    assert sampled.logprobs[2] is None
    for i in (0, 1, 3):
        found = sampled.logprobs[i]
        assert found is not None
        assert found.chosen == pytest.approx(float(truth[i, sampled.tokens[i]]), abs=1e-5)
        values, ids = truth[i].topk(3 if i < 2 else 0)
        assert [token for token, _ in found.top] == ids.tolist()
        assert [value for _, value in found.top] == pytest.approx(values.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "limit",
    [
        {"temperature": 1e-40},
        {"temperature": 1e-40, "top_p": 0.9, "top_k": 5, "min_p": 0.1},
        {"temperature": 5e-324},
        {"top_p": 0.0},
        {"top_p": 1e-50, "temperature": 2.0},
        {"top_p": 1e-30},
    ],
)
def test_settings_that_tend_to_greedy_are_greedy(limit: dict[str, float]) -> None:
    torch.manual_seed(5)
    logits = torch.randn(40, VOCAB) * 3
    logits[:, [9, 700]] = 20.0
    assert sampler().sample(logits.clone(), rows(limit)).tokens == [9] * 40  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1e-8, 1e-6, 1e-3])
def test_a_cold_draw_takes_the_likeliest_by_far(temperature: float) -> None:
    torch.manual_seed(6)
    asked = rows({"temperature": temperature})
    logits = torch.randn(len(asked), VOCAB) * 3
    logits[:, 77] = 30.0
    assert sampler().sample(logits.clone(), asked).tokens == [77] * len(asked)


@pytest.mark.parametrize("cut", [{"top_k": 1}, {"top_p": 0.1}, {"temperature": 1e-6}])
def test_the_only_token_left_is_drawn_though_its_noise_is_the_least_there_is(cut: dict[str, float]) -> None:
    vocab, paris = 49_152, 7042
    logits = torch.zeros(1, vocab)
    logits[0, paris] = 20.0
    whole = Sampler(make_collectives(0, 1, True), 0, vocab, EOS)
    row = SamplingRow(Sampling(seed=25798849, max_tokens=1, **cut), [504, 3575, 282, 4649, 314], 5)  # type: ignore[arg-type]
    assert whole.sample(logits, [row]).tokens == [paris]


def test_a_repetition_penalty_near_0_prefers_the_likeliest_of_the_seen() -> None:
    asked = [SamplingRow(Sampling(seed=1, max_tokens=9, repetition_penalty=1e-40), [3, 4], 2)]
    logits = torch.full((1, VOCAB), 1.0)
    logits[0, 4], logits[0, 5] = 2.0, 50.0
    assert sampler().sample(logits, asked).tokens == [4]


@pytest.mark.parametrize("cuts", [{"top_k": 9, "top_p": 0.5}, {"top_k": 700}, {"top_p": 0.5}, {"min_p": 0.5}])
def test_a_row_without_numbers_leaves_the_others_alone(cuts: dict[str, float]) -> None:
    torch.manual_seed(7)
    asked, logits = rows(cuts, 3), torch.randn(3, VOCAB)  # type: ignore[arg-type]
    expected = sampler().sample(logits.clone(), asked).tokens
    logits[1] = float("nan")
    found = sampler().sample(logits, asked).tokens
    assert [found[0], found[2]] == [expected[0], expected[2]]


def test_no_more_logprobs_are_told_than_there_are_tokens() -> None:
    sampled = sampler().sample(torch.zeros(1, VOCAB), rows({"logprobs": 2**31}, 1))
    assert sampled.logprobs is not None
    assert sampled.logprobs[0] is not None
    assert len(sampled.logprobs[0].top) == VOCAB


def test_equal_logits_give_the_lowest_id() -> None:
    asked = rows({"temperature": 0.0}, 1)
    assert sampler().sample(torch.zeros(1, VOCAB), asked).tokens == [0]

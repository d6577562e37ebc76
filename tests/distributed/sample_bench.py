"""Times the sampling of a step on real ranks, two unless told: `python -m tests.distributed.sample_bench`.

For each parameter: a step of 32 rows, one of which has it, and a step of 64 rows that all have it, beside the same
steps with a temperature of 1 alone: the fastest of many, as whatever else a machine does only adds. With `--ranks 1`
there is no waiting, and what is shown is processor time, which other work hardly touches; `--vocab` then is what one
rank of several would have. Sequences grow by the tokens that are drawn, as they do in the engine. To set a row's price
against a whole step, give `--step-ms`, the decode step at 32 that `tests.distributed.step_bench` shows.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from serving.engine.distributed.collectives import Collectives
from serving.engine.layers.vocabulary import VocabSlice
from serving.engine.sampling.sampler import Sampler, SamplingRow
from serving.messages import Sampling
from tests.distributed.ranks import RankPool

FLAT, USUAL = 0.01, 3.0
"""Standard deviations of the logits."""
KINDS: dict[str, tuple[dict[str, Any], float]] = {
    "temperature alone": ({}, USUAL),
    "logit_bias of 1024": ({"logit_bias": {7 * i: 0.5 for i in range(1024)}}, USUAL),
    "top_p": ({"top_p": 0.9}, USUAL),
    "top_p, flat": ({"top_p": 0.9}, FLAT),
    "top_k 50": ({"top_k": 50}, USUAL),
    "top_k 50, top_p": ({"top_k": 50, "top_p": 0.9}, USUAL),
    "top_k 20000": ({"top_k": 20_000}, USUAL),
    "top_k 2147483647": ({"top_k": 2**31 - 1}, USUAL),
    "min_p": ({"min_p": 0.05}, USUAL),
    "repetition_penalty": ({"repetition_penalty": 1.2}, USUAL),
    "presence_penalty": ({"presence_penalty": 0.5}, USUAL),
    "frequency_penalty": ({"frequency_penalty": 0.5}, USUAL),
    "min_tokens": ({"min_tokens": 10_000}, USUAL),
    "logprobs 20": ({"logprobs": 20}, USUAL),
    "all of these": (
        {
            "logit_bias": {7 * i: 0.5 for i in range(1024)},
            "top_p": 0.9,
            "top_k": 20_000,
            "min_p": 1e-6,
            "repetition_penalty": 1.2,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.5,
            "min_tokens": 10_000,
            "logprobs": 20,
        },
        USUAL,
    ),
}


def measure(collectives: Collectives, vocab_size: int, context: int, steps: int) -> dict[str, list[float]]:
    """One rank: for each kind the seconds of a step of 32 plain rows, of 32 with one of it, and of 64 of it."""
    vocab = VocabSlice.of_rank(vocab_size, collectives.rank, collectives.world)
    sampler = Sampler(collectives, vocab.start, vocab.end, frozenset({2}))
    clock = time.thread_time if collectives.world == 1 else time.perf_counter
    found = {}
    for kind, (settings, spread) in KINDS.items():
        numbers = torch.Generator().manual_seed(1)
        logits = torch.randn(64, vocab_size, generator=numbers)[:, vocab.start : vocab.end] * spread
        batches = [
            [_row(i, vocab_size, context, {}) for i in range(32)],
            [_row(i, vocab_size, context, {} if i else settings) for i in range(32)],
            [_row(i, vocab_size, context, settings) for i in range(64)],
        ]
        # In turn, so that a machine that slows down slows all; the first step of each only prepares.
        took = [[_step(sampler, logits, batch, clock) for batch in batches] for _ in range(steps + 1)]
        found[kind] = [min(seconds) for seconds in zip(*took[1:], strict=True)]
    return found


def _row(place: int, vocab_size: int, context: int, settings: dict[str, Any]) -> SamplingRow:
    tokens = torch.randint(vocab_size, (context,), generator=torch.Generator().manual_seed(place)).tolist()
    return SamplingRow(Sampling(seed=place, max_tokens=10_000, **settings), tokens, context // 2)


def _step(sampler: Sampler, logits: torch.Tensor, rows: Sequence[SamplingRow], clock: Callable[[], float]) -> float:
    """Seconds of one step, after which the sequences are longer."""
    mine = logits[: len(rows)].clone()
    began = clock()
    drawn = sampler.sample(mine, rows)
    took = clock() - began
    for row, token in zip(rows, drawn.tokens, strict=True):
        row.tokens.append(token)  # type: ignore[attr-defined]
    return took


def main() -> None:
    """Start both ranks and print what they measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--context", type=int, default=2048, help="tokens of each sequence, half of them drawn")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--step-ms", type=float, help="a whole step of 32 rows, to give a row's price in percent of")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--network", action="store_true", help="sum over sockets, as between machines")
    asked = parser.parse_args()
    pool = RankPool(asked.ranks, one_machine=not asked.network)
    try:
        found = pool.run(measure, asked.vocab, asked.context, asked.steps, timeout_s=600)[0]
    finally:
        pool.close()
    print(f"{'milliseconds of sampling':24}{'32 rows':>10}{'1 with it':>11}{'more':>8}{'64 with it':>12}")
    for kind, (plain, one, every) in found.items():
        share = f"{100 * (one - plain) / (asked.step_ms / 1e3):+7.1f} %" if asked.step_ms else ""
        print(f"{kind:24}{1e3 * plain:10.2f}{1e3 * one:11.2f}{1e3 * (one - plain):+8.2f}{1e3 * every:12.2f}{share}")


if __name__ == "__main__":
    main()

"""Times the engine's steps on two ranks without HTTP: `python -m tests.distributed.step_bench`.

Each rank runs a scheduler of its own on the same requests, so nothing is broadcast and nothing is handed out: what is
left is the batch, the forward pass and the sampling. A step that prefills is told apart from one that only decodes.
"""

import argparse
import statistics
import time
from typing import Any

import torch

from serving.config import Config
from serving.engine.distributed.collectives import Collectives
from serving.engine.engine import build_engine
from serving.engine.scheduling.scheduler import Scheduler
from serving.messages import Sampling, Submit
from tests.distributed.ranks import RankPool

CONCURRENCY = (1, 8, 32)
ENGINE: dict[str, Any] = {}


def measure(collectives: Collectives, settings: dict[str, Any], prompt: int, output: int) -> list[str]:
    """One rank: a line for each concurrency, twice, the first time to warm up."""
    config = Config.model_validate(settings)
    engine = build_engine(config, collectives, 1, torch.device("cpu"))
    scheduler = Scheduler(
        config.engine,
        generation=1,
        num_blocks=engine._num_blocks,
        max_model_len=config.model.max_model_len,
        vocab_size=engine._model.vocab_size,
        eos_token_ids=frozenset(),
    )
    lines = []
    for run, count in enumerate((8, *CONCURRENCY)):
        numbers = torch.Generator().manual_seed(run)
        for i in range(count):
            ids = torch.randint(1000, 30_000, (prompt,), generator=numbers).tolist()
            scheduler.add(
                Submit(id=f"{run}-{i}", prompt=ids, sampling=Sampling(temperature=0.0, seed=0, max_tokens=output)), "a"
            )
        decodes, prefills = [], []
        while scheduler.has_work:
            began = time.perf_counter()
            plan = scheduler.schedule()
            assert plan is not None
            sampled = engine.runner.execute(plan)
            scheduler.complete(plan, sampled.tokens, sampled.logprobs)
            if plan.prefill:
                prefills.append((time.perf_counter() - began, sum(chunk.count for chunk in plan.prefill)))
            elif plan.decode:
                decodes.append(time.perf_counter() - began)
        if run:
            took = sorted(decodes)
            rate = sum(n for _, n in prefills) / sum(s for s, _ in prefills)
            lines.append(
                f"{count:3d} at a time  decode step median {1e3 * statistics.median(took):6.2f} ms, "
                f"p10 {1e3 * took[len(took) // 10]:6.2f}, p90 {1e3 * took[-len(took) // 10]:6.2f};  "
                f"prefill {rate:6.0f} tokens/s"
            )
    return lines


def main() -> None:
    """Start both ranks and print what they measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--network", action="store_true", help="sum over sockets, as between machines")
    asked = parser.parse_args()
    settings = {
        "model": {"path": asked.model, "max_model_len": 4096},
        "parallel": {"tensor_parallel_size": 2, "cpus_per_rank": 1},
    }
    pool = RankPool(2, one_machine=not asked.network)
    try:
        for line in pool.run(measure, settings, asked.prompt_tokens, asked.output_tokens, timeout_s=600)[0]:
            print(line)
    finally:
        pool.close()


if __name__ == "__main__":
    main()

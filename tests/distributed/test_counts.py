"""What a steady step costs, in counts that no machine's speed changes: sums, bytes, copies, calls of Python."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from serving.config import load_config
from serving.engine.distributed.broadcast import GroupBroadcast
from serving.engine.distributed.collectives import Collectives
from serving.engine.engine import build_engine
from serving.engine.scheduling.scheduler import Scheduler
from serving.messages import Sampling, Submit
from tests.distributed.ranks import RankPool
from tests.engine.tiny_models import VOCAB, save_model
from tests.support.requires import needs_avx512

pytestmark = needs_avx512

LAYERS = 3
COPIES = {"copy_", "_to_copy", "clone", "contiguous"}


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names of the operators that torch was asked for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_calls(calls: list[str]) -> Iterator[None]:
    """Every call of a Python or a built-in function in this thread."""
    sys.setprofile(lambda frame, event, arg: calls.append(event) if event in {"call", "c_call"} else None)
    try:
        yield
    finally:
        sys.setprofile(None)


def count(collectives: Collectives, folder: Path, batch: int) -> dict[str, int]:
    """On a rank: the counts of a step that decodes `batch` sequences, once all of them run."""
    tree: dict[str, Any] = {"model": {"path": str(folder), "max_model_len": 64, "shard_cache": None}}
    config = load_config(tree | {"engine": {"kv_cache_gib": 0.01}})
    engine = build_engine(config, collectives, generation=1, device=torch.device("cpu"))
    scheduler = Scheduler(
        config.engine, generation=1, num_blocks=500, max_model_len=64, vocab_size=VOCAB, eos_token_ids=frozenset()
    )
    broadcast = GroupBroadcast(60.0)
    for i in range(batch):
        scheduler.add(
            Submit(id=str(i), prompt=[5 + i, 7], sampling=Sampling(temperature=0.0, seed=0, max_tokens=40)), "owner"
        )

    def step(watched: AbstractContextManager[None]) -> tuple[int, int]:
        """Sums, and bytes broadcast."""
        plan = scheduler.schedule()
        assert plan is not None
        assert (len(plan.decode), len(plan.prefill)) in {(0, batch), (batch, 0)}
        sent = broadcast.send(plan) if collectives.rank == 0 else 0
        if collectives.rank:
            plan = broadcast.receive()
        assert collectives.own is not None
        ranks: Any = collectives.own.ranks
        before = ranks.next
        with watched:
            sampled = engine.runner.execute(plan)
        scheduler.complete(plan, sampled.tokens)
        return ranks.next - before, sent

    for _ in range(3):
        step(nullcontext())
    operators, calls = Operators(), list[str]()
    step(operators)
    sums, sent = step(counted_calls(calls))
    copies = sum(name in COPIES for name in operators.names)
    return {"sums": sums, "bytes": sent, "operators": len(operators.names), "copies": copies, "calls": len(calls)}


@pytest.fixture(scope="module")
def counts(ranks2: RankPool, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, int]]:
    """Of rank 0, by the number of sequences."""
    folder = tmp_path_factory.mktemp("counted")
    save_model("llama, tied", folder)
    return {batch: ranks2.run(count, folder, batch)[0] for batch in (1, 8, 32)}


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_a_step_sums_twice_a_layer_and_once_each_for_embedding_and_draw(
    counts: dict[int, dict[str, int]], batch: int
) -> None:
    assert counts[batch]["sums"] == 2 * LAYERS + 2


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_a_steady_plan_fits_one_broadcast(counts: dict[int, dict[str, int]], batch: int) -> None:
    assert counts[batch]["bytes"] == GroupBroadcast.BUFFER_BYTES


def test_copies_and_operators_do_not_grow_with_the_batch(counts: dict[int, dict[str, int]]) -> None:
    assert counts[8]["copies"] == counts[32]["copies"] <= 3
    assert counts[8]["operators"] == counts[32]["operators"] <= 70


def test_calls_of_python_grow_little_with_the_batch(counts: dict[int, dict[str, int]]) -> None:
    """Three layers; a handful of calls each, and a few for each sequence's row, block table and token."""
    assert counts[1]["calls"] <= 600
    assert (counts[32]["calls"] - counts[8]["calls"]) / 24 <= 18

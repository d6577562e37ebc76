"""Requests for a vector, as scheduler and replica see them: no token, no prefix hit, a context filled to its end."""

import struct

import pytest

from serving.config import EngineConfig
from serving.engine.execution.replica import SequenceTable
from serving.engine.scheduling.scheduler import Scheduler
from serving.errors import ProtocolError
from serving.messages import Delta, Pooling, Sampling, Submit, decode_plan, encode, floats

CONTEXT = 64
UNUSED = Sampling(seed=0, max_tokens=1)


@pytest.fixture
def scheduler() -> Scheduler:
    config = EngineConfig(max_batched_tokens=16, max_running=8, block_size=4)
    limits = {"num_blocks": 200, "max_model_len": CONTEXT, "vocab_size": 100}
    return Scheduler(config, generation=1, eos_token_ids=frozenset(), **limits)


def embed(id_: str, length: int) -> Submit:
    return Submit(id=id_, prompt=[1] * length, sampling=UNUSED, pooling=Pooling())


def test_each_position_is_computed_once_and_the_vector_ends_the_request(scheduler: Scheduler) -> None:
    """Equal prompts, so that the prefix cache would have hits for them; a request that generates runs beside."""
    lengths = {"a": 1, "b": 17, "c": CONTEXT, "d": 17}
    assert all(scheduler.add(embed(id_, length), "g") is None for id_, length in lengths.items())
    scheduler.add(Submit(id="text", prompt=[9] * 20, sampling=Sampling(seed=0, max_tokens=5)), "g")
    replica, computed, ends = SequenceTable(4), dict.fromkeys(range(1, 5), 0), dict[str, Delta]()
    while (plan := scheduler.schedule()) is not None:
        replica.apply(decode_plan(encode(plan)))
        rows, vectors = replica.rows(plan), []
        for row in rows:
            if row.pooled:
                computed[row.handle] += row.count
                if row.start + row.count == len(replica.sequences[row.handle].tokens):
                    vectors.append(struct.pack("<f", row.handle))
        drawn = [7 for row in rows if row.samples]
        for delta in scheduler.complete(plan, drawn, embeddings=vectors).get("g", []):
            if delta.finish is not None:
                ends[delta.id] = delta
        replica.commit(plan, drawn)
    assert list(computed.values()) == list(lengths.values())
    found = {id_: floats(delta.embedding) for id_, delta in ends.items() if delta.embedding is not None}
    assert found == {"a": [1.0], "b": [2.0], "c": [3.0], "d": [4.0]}
    assert ends["text"].finish == "length"
    counters = scheduler.counters()
    assert (counters["prefix_hit_tokens"], counters["kv_blocks_used"], replica.sequences) == (0, 0, {})


def test_one_token_over_the_context_is_refused(scheduler: Scheduler) -> None:
    refused = scheduler.add(embed("over", CONTEXT + 1), "g")
    assert refused is not None
    assert refused.error == "the prompt has 65 tokens; 64 fit the model"


def test_a_step_without_its_vector_is_refused(scheduler: Scheduler) -> None:
    scheduler.add(embed("a", 3), "g")
    plan = scheduler.schedule()
    assert plan is not None
    with pytest.raises(ProtocolError, match="step 1 completes 1 vectors, not 0"):
        scheduler.complete(plan, [])

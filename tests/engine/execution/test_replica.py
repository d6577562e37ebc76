"""The replica follows legal plans, and an illegal one leaves it as it was."""

import copy

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engine.execution.replica import Row, SequenceState, SequenceTable
from serving.errors import ProtocolError
from serving.messages import Chunk, NewSequence, Sampling, StepPlan
from tests.engine.scheduling.traces import Engine, config, submit

PLAIN = Sampling(seed=0, max_tokens=9)


def new(handle: int, *tokens: int, prompt_len: int | None = None) -> NewSequence:
    length = len(tokens) if prompt_len is None else prompt_len
    return NewSequence(handle=handle, tokens=list(tokens), prompt_len=length, sampling=PLAIN)


def plan(number: int, **differences: object) -> StepPlan:
    return msgspec.structs.replace(StepPlan(generation=3, number=number), **differences)


def running() -> SequenceTable:
    """After plan 1: handle 1 decodes (6 tokens, 5 computed), handle 2 is half prefilled (4 of 7), block size 4."""
    replica = SequenceTable(block_size=4)
    first = plan(
        1,
        new=[new(1, 10, 11, 12, 13, 14), new(2, *range(20, 27))],
        placed={1: [5, 6], 2: [7]},
        prefill=[Chunk(1, 0, 5), Chunk(2, 0, 4)],
    )
    replica.apply(first)
    replica.commit(first, [99])
    return replica


def test_a_new_sequence_is_known_with_its_blocks_and_its_sampled_token() -> None:
    replica = running()
    assert replica.sequences == {
        1: SequenceState(tokens=[10, 11, 12, 13, 14, 99], prompt_len=5, sampling=PLAIN, blocks=[5, 6], computed=5),
        2: SequenceState(tokens=list(range(20, 27)), prompt_len=7, sampling=PLAIN, blocks=[7], computed=4),
    }


def test_rows_are_decodes_first_and_a_chunk_samples_where_it_reaches_the_end() -> None:
    replica = running()
    second = plan(2, placed={2: [8]}, decode=[1], prefill=[Chunk(2, 4, 3)])
    replica.apply(second)
    assert replica.rows(second) == [
        Row(1, 5, 1, samples=True, decode=True),
        Row(2, 4, 3, samples=True, decode=False),
    ]
    replica.commit(second, [98, 97])
    assert replica.sequences[1].tokens[-2:] == [99, 98]
    assert replica.sequences[2].tokens[-1] == 97


def test_a_chunk_short_of_the_end_samples_nothing() -> None:
    replica = running()
    second = plan(2, placed={2: [8]}, prefill=[Chunk(2, 4, 2)])
    replica.apply(second)
    assert [row.samples for row in replica.rows(second)] == [False]
    replica.commit(second, [])
    assert replica.sequences[2].computed == 6


def test_a_finished_sequence_is_forgotten() -> None:
    replica = running()
    replica.apply(plan(2, finished=[1]))
    assert list(replica.sequences) == [2]


def test_a_preempted_sequence_keeps_its_tokens_and_starts_where_it_is_told() -> None:
    replica = running()
    replica.apply(plan(2, preempted=[1]))
    assert replica.sequences[1].blocks == []
    third = plan(3, placed={1: [7, 9]}, prefill=[Chunk(1, 4, 2)])
    replica.apply(third)
    assert replica.rows(third) == [Row(1, 4, 2, samples=True, decode=False)]
    assert replica.sequences[1].tokens == [10, 11, 12, 13, 14, 99]


def test_a_sequence_preempted_and_placed_in_one_plan_has_only_the_new_blocks() -> None:
    replica = running()
    replica.apply(plan(2, preempted=[1], placed={1: [9]}, prefill=[Chunk(1, 0, 4)]))
    assert replica.sequences[1].blocks == [9]


def test_the_replica_shares_no_list_with_the_plan() -> None:
    replica, announced = SequenceTable(block_size=4), new(1, 10)
    first = plan(1, new=[announced], placed={1: [5]}, prefill=[Chunk(1, 0, 1)])
    replica.apply(first)
    replica.commit(first, [99])
    assert announced.tokens == [10]
    assert first.placed == {1: [5]}


def test_plans_without_rows_need_no_commit() -> None:
    replica = SequenceTable(block_size=4)
    for number in (1, 2, 3):
        replica.apply(plan(number))
        assert replica.rows(plan(number)) == []
    replica.commit(plan(3), [])


ILLEGAL = {
    "a plan of another generation": StepPlan(generation=4, number=2),
    "a plan that was applied already": plan(1),
    "a plan that leaves one out": plan(3),
    "the end of an unknown sequence": plan(2, finished=[9]),
    "the end of a sequence twice": plan(2, finished=[1, 1]),
    "the preemption of an unknown sequence": plan(2, preempted=[9]),
    "the preemption of a sequence twice": plan(2, preempted=[1, 1]),
    "the preemption of a sequence that ends": plan(2, finished=[1], preempted=[1]),
    "a new sequence under a known handle": plan(2, new=[new(1, 10)]),
    "a new sequence under a handle that ends": plan(2, finished=[1], new=[new(1, 10)]),
    "two new sequences under one handle": plan(2, new=[new(3, 10), new(3, 10)]),
    "a new sequence without tokens": plan(2, new=[new(3, prompt_len=1)]),
    "a new sequence without a prompt": plan(2, new=[new(3, 10, prompt_len=0)]),
    "a prompt longer than its sequence": plan(2, new=[new(3, 10, prompt_len=2)]),
    "blocks for an unknown sequence": plan(2, placed={9: [1]}),
    "blocks for a sequence that ends": plan(2, finished=[1], placed={1: [9]}),
    "a decode of an unknown sequence": plan(2, decode=[9]),
    "a decode of a sequence that ends": plan(2, finished=[1], decode=[1]),
    "a decode of a sequence still in prefill": plan(2, placed={2: [8]}, decode=[2]),
    "a decode of a preempted sequence": plan(2, preempted=[1], placed={1: [5, 6]}, decode=[1]),
    "a decode of a sequence twice": plan(2, decode=[1, 1]),
    "a decode and a chunk of one sequence": plan(2, decode=[1], prefill=[Chunk(1, 5, 1)]),
    "a chunk of an unknown sequence": plan(2, prefill=[Chunk(9, 0, 1)]),
    "a chunk of a sequence that ends": plan(2, finished=[2], prefill=[Chunk(2, 4, 1)]),
    "a chunk of nothing": plan(2, placed={2: [8]}, prefill=[Chunk(2, 4, 0)]),
    "a chunk before the beginning": plan(2, new=[new(3, 10)], placed={3: [8]}, prefill=[Chunk(3, -1, 2)]),
    "a chunk beyond the end": plan(2, placed={2: [8]}, prefill=[Chunk(2, 4, 4)]),
    "a chunk that leaves a gap": plan(2, placed={2: [8]}, prefill=[Chunk(2, 5, 2)]),
    "a chunk that goes back": plan(2, placed={2: [8]}, prefill=[Chunk(2, 3, 2)]),
    "a chunk outside its blocks": plan(2, prefill=[Chunk(2, 4, 3)]),
    "a chunk of a new sequence without blocks": plan(2, new=[new(3, 10)], prefill=[Chunk(3, 0, 1)]),
    "a chunk in blocks that were lost": plan(2, preempted=[2], prefill=[Chunk(2, 0, 4)]),
    "a legal beginning and an illegal end": plan(2, finished=[1], new=[new(3, 10)], placed={3: [5]}, decode=[9]),
}


def known(replica: SequenceTable) -> object:
    """All of a replica's state, as a value."""
    return copy.deepcopy(vars(replica))


@pytest.mark.parametrize("illegal", ILLEGAL.values(), ids=ILLEGAL.keys())
def test_an_illegal_plan_is_refused_and_changes_nothing(illegal: StepPlan) -> None:
    replica = running()
    before = known(replica)
    with pytest.raises(ProtocolError):
        replica.apply(illegal)
    assert known(replica) == before
    replica.apply(plan(2, decode=[1]))


def test_a_decode_outside_its_blocks_is_refused() -> None:
    replica = SequenceTable(block_size=4)
    first = plan(1, new=[new(1, 10, 11, 12, 13)], placed={1: [5]}, prefill=[Chunk(1, 0, 4)])
    replica.apply(first)
    replica.commit(first, [99])
    with pytest.raises(ProtocolError, match="outside its 1 blocks"):
        replica.apply(plan(2, decode=[1]))
    replica.apply(plan(2, placed={1: [6]}, decode=[1]))


def test_a_plan_before_the_last_one_was_committed_is_refused() -> None:
    replica = running()
    replica.apply(plan(2, decode=[1]))
    before = known(replica)
    with pytest.raises(ProtocolError, match="before plan 2 was committed"):
        replica.apply(plan(3, decode=[1]))
    assert known(replica) == before


def test_a_commit_with_the_wrong_plan_or_count_is_refused_and_changes_nothing() -> None:
    replica, second = running(), plan(2, decode=[1])
    replica.apply(second)
    before = known(replica)
    with pytest.raises(ProtocolError, match="samples 1 tokens, not 2"):
        replica.commit(second, [1, 2])
    with pytest.raises(ProtocolError, match="is not the one applied last"):
        replica.commit(plan(1), [1])
    assert known(replica) == before
    replica.commit(second, [1])
    with pytest.raises(ProtocolError, match="committed already"):
        replica.commit(second, [1])


def test_the_first_plan_is_number_one() -> None:
    with pytest.raises(ProtocolError, match="plan 2 after plan 0"):
        SequenceTable(block_size=4).apply(plan(2))


PROMPTS = st.lists(st.lists(st.integers(3, 5), min_size=1, max_size=30), min_size=1, max_size=6)
FIELDS = st.sampled_from(["finished", "preempted", "decode"])


@settings(max_examples=60)
@given(PROMPTS, st.integers(0, 12), FIELDS, st.integers(0, 8))
def test_any_wrong_handle_in_a_real_plan_leaves_the_replica_unchanged(
    prompts: list[list[int]], steps: int, where: str, handle: int
) -> None:
    """A plan of a real trace with one handle added is either refused whole, or as legal as the plan itself."""
    engine = Engine(config(), 20)
    for number, prompt in enumerate(prompts):
        engine.add(submit(str(number), prompt, max_tokens=6, seed=number))
    for _ in range(steps):
        engine.step()
    real = engine.scheduler.schedule() or engine.scheduler.idle()
    wrong = msgspec.structs.replace(real, **{where: [*getattr(real, where), handle]})
    before = known(engine.replica)
    try:
        engine.replica.apply(wrong)
    except ProtocolError:
        assert known(engine.replica) == before
        engine.replica.apply(real)

"""What the scheduler promises, step by step, and over generated traces with a fake model."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engine.scheduling.block_manager import BlockTable
from serving.engine.scheduling.request import TRANSITIONS, Request, State
from serving.engine.scheduling.waiting_queue import WaitingQueue
from serving.errors import ProtocolError
from serving.messages import Chunk, Delta, EngineStats, Sampling, StepPlan, Submit, TokenLogprobs
from tests.engine.scheduling.traces import MAX_MODEL_LEN, VOCAB, Engine, answer, config, draw, submit


def engine(num_blocks: int = 40, **changes: object) -> Engine:
    return Engine(config(**changes), num_blocks)


def planned(engine: Engine) -> StepPlan:
    plan = engine.step()
    assert plan is not None
    return plan


# ---------------------------------------------------------------- one request's life


def test_with_nothing_to_do_there_is_no_plan() -> None:
    idle = engine()
    assert not idle.scheduler.has_work
    assert idle.scheduler.schedule() is None


def test_a_prompt_is_prefilled_then_decoded_a_token_a_step_then_forgotten() -> None:
    life = engine()
    life.add(submit("a", [1, 3, 4, 5, 6], max_tokens=3))
    first = planned(life)
    assert [new.tokens for new in first.new] == [[1, 3, 4, 5, 6]]
    assert first.prefill == [Chunk(1, 0, 5)]
    assert len(first.placed[1]) == 2
    assert [planned(life).decode for _ in range(2)] == [[1], [1]]
    last = planned(life)
    assert last == StepPlan(generation=3, number=4, finished=[1])
    assert life.step() is None


def test_plans_are_numbered_from_one_and_carry_their_generation() -> None:
    life = engine()
    life.add(submit("a", [1], max_tokens=2))
    plans = [planned(life) for _ in range(3)]
    assert [(plan.generation, plan.number) for plan in plans] == [(3, 1), (3, 2), (3, 3)]


def test_heartbeats_and_the_farewell_are_numbered_like_any_plan() -> None:
    scheduler = engine().scheduler
    assert scheduler.idle() == StepPlan(generation=3, number=1)
    assert scheduler.stop_plan() == StepPlan(generation=3, number=2, stop=True)


def test_a_long_prompt_is_prefilled_in_chunks_of_the_budget() -> None:
    life = engine()
    life.add(submit("a", [1] * 40))
    assert [planned(life).prefill for _ in range(3)] == [[Chunk(1, 0, 16)], [Chunk(1, 16, 16)], [Chunk(1, 32, 8)]]
    assert planned(life).decode == [1]


def test_running_sequences_decode_while_a_long_prompt_prefills() -> None:
    life = engine()
    life.add(submit("a", [1], max_tokens=20))
    planned(life)
    life.add(submit("b", [1] * 40))
    plans = [planned(life) for _ in range(3)]
    assert [plan.decode for plan in plans] == [[1]] * 3
    assert [plan.prefill for plan in plans] == [[Chunk(2, 0, 15)], [Chunk(2, 15, 15)], [Chunk(2, 30, 10)]]


def test_no_more_than_max_running_run_and_the_rest_wait_in_order() -> None:
    life = engine(max_running=2)
    for name in "abc":
        life.add(submit(name, [1, 3], max_tokens=2))
    assert [new.handle for new in planned(life).new] == [1, 2]
    assert life.scheduler.counters()["waiting"] == 1
    planned(life)
    assert [new.handle for new in planned(life).new] == [3]


def test_a_lower_priority_number_runs_first_and_equals_by_arrival() -> None:
    life = engine(max_running=1)
    for name, priority in [("a", 1), ("b", 0), ("c", -1), ("d", 0)]:
        life.add(submit(name, [1, 3], max_tokens=1, priority=priority))
    order = [new.handle for _ in range(4) for new in planned(life).new]
    assert order == [3, 2, 4, 1]


def test_a_request_that_does_not_fit_holds_back_the_rest() -> None:
    life = engine(num_blocks=10)
    life.add(submit("a", [1] * 12, max_tokens=20))
    planned(life)
    life.add(submit("b", [3] * 28, max_tokens=5))
    life.add(submit("c", [4], max_tokens=5))
    plan = planned(life)
    assert not plan.new
    assert plan.decode == [1]


# ---------------------------------------------------------------- how a request ends


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_an_end_of_sequence_token_stops_unless_ignored(ignore_eos: bool) -> None:
    life, asked = engine(), submit("a", [1] * 5, max_tokens=40, seed=4, ignore_eos=ignore_eos)
    assert 2 in [draw(4, position) for position in range(5, 45)]
    outcome = life.add(asked)
    life.run()
    assert (outcome.tokens, outcome.finish) == answer(asked)
    assert outcome.finish == ("length" if ignore_eos else "stop")


def test_a_stop_token_is_the_last_token_and_is_named() -> None:
    life = engine()
    stop = draw(1, 7)
    asked = submit("a", [1] * 5, max_tokens=40, stop_token_ids=(stop,))
    outcome = life.add(asked)
    life.run()
    assert outcome.finish == "stop"
    assert outcome.tokens[-1] == stop


def test_a_stop_token_before_min_tokens_is_a_token_like_any_other() -> None:
    every_token = tuple(range(VOCAB))
    life, asked = engine(), submit("a", [1], max_tokens=9, min_tokens=4, stop_token_ids=every_token)
    outcome = life.add(asked)
    life.run()
    assert (len(outcome.tokens), outcome.finish) == (4, "stop")


def test_a_sequence_ends_at_the_models_length() -> None:
    life = engine()
    outcome = life.add(submit("a", [1] * (MAX_MODEL_LEN - 3), max_tokens=100))
    life.run()
    assert (len(outcome.tokens), outcome.finish) == (3, "length")


def test_the_last_token_needs_no_block_as_it_is_never_computed() -> None:
    life = engine(num_blocks=2)
    outcome = life.add(submit("a", [1] * 6, max_tokens=3))
    life.run()
    assert len(outcome.tokens) == 3
    assert life.add(submit("b", [1] * 6, max_tokens=4)).error is not None


def test_a_resumed_request_goes_on_where_it_was() -> None:
    whole, resumed = engine(), engine()
    asked = submit("a", [1] * 5, max_tokens=12)
    complete = whole.add(asked)
    whole.run()
    rest = resumed.add(msgspec.structs.replace(asked, emitted=complete.tokens[:7]))
    resumed.run()
    assert rest.tokens == complete.tokens[7:]
    assert rest.finish == complete.finish


def test_a_resumed_request_with_nothing_left_ends_at_once() -> None:
    life = engine()
    assert life.scheduler.add(submit("a", [1], max_tokens=2, emitted=[3, 4]), "g") == Delta(id="a", finish="length")
    full = submit("b", [1] * 80, max_tokens=50, emitted=[3] * 10)
    assert life.scheduler.add(full, "g") == Delta(id="b", finish="length")
    assert not life.scheduler.has_work


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (submit("x", []), "the prompt is empty"),
        (submit("x", [1] * MAX_MODEL_LEN), "the prompt has 90 tokens; with at least one to answer, 90 fit the model"),
        (submit("x", [1, VOCAB]), "a token id is outside the vocabulary of 12"),
        (submit("x", [1, -1]), "a token id is outside the vocabulary of 12"),
        (submit("x", [1], emitted=[VOCAB]), "a token id is outside the vocabulary of 12"),
        (submit("x", [1], logit_bias={VOCAB: 1.0}), "a token id is outside the vocabulary of 12"),
        (submit("x", [1], stop_token_ids=(VOCAB,)), "a token id is outside the vocabulary of 12"),
        (submit("x", [1] * 30, max_tokens=20), "prompt and max_tokens need 13 KV blocks, and there are only 10"),
        (submit("here", [1]), "a request with id here is already here"),
    ],
)
def test_what_can_never_run_is_refused_at_once(refused: Submit, reason: str) -> None:
    life = engine(num_blocks=10)
    life.add(submit("here", [1]))
    assert life.scheduler.add(refused, "g") == Delta(id=refused.id, error=reason)
    assert life.scheduler.counters()["waiting"] == 1


def test_two_owners_may_use_the_same_id() -> None:
    life = engine()
    one, two = life.add(submit("a", [1], seed=1), "g"), life.add(submit("a", [1], seed=2), "h")
    life.run()
    assert one.tokens == [draw(1, position) for position in range(1, 6)]
    assert two.tokens == [draw(2, position) for position in range(1, 6)]


# ---------------------------------------------------------------- cancelling


def test_a_cancelled_sequence_is_gone_from_the_next_plan() -> None:
    life = engine()
    for name in "ab":
        life.add(submit(name, [1, 3], max_tokens=20))
    planned(life)
    life.scheduler.cancel(["a", "never heard of"], "g")
    plan = planned(life)
    assert plan.finished == [1]
    assert plan.decode == [2]


def test_followers_are_not_told_of_what_they_never_saw() -> None:
    life = engine()
    life.add(submit("a", [1]))
    life.scheduler.cancel(["a"], "g")
    assert not life.scheduler.has_work
    assert life.step() is None


def test_an_owner_cancels_only_its_own() -> None:
    life = engine()
    life.add(submit("a", [1]), "g")
    life.scheduler.cancel(["a"], "h")
    life.scheduler.cancel_owner("h")
    assert life.scheduler.counters()["waiting"] == 1


def test_an_owner_that_leaves_takes_all_it_has_along() -> None:
    life = engine(max_running=2)
    for name in "abc":
        life.add(submit(name, [1, 3], max_tokens=20), "g")
    kept = life.add(submit("d", [1, 3]), "h")
    planned(life)
    life.scheduler.cancel_owner("g")
    assert planned(life).finished == [1, 2]
    life.run()
    assert kept.finish == "length"


def test_a_sequence_cancelled_while_it_is_computed_says_no_more() -> None:
    life = engine()
    for name in "ab":
        life.add(submit(name, [1, 3, 4, 5, 6], max_tokens=20))
    plan = life.scheduler.schedule()
    assert plan is not None
    life.scheduler.cancel(["a"], "g")
    told = life.scheduler.complete(plan, [7, 8])
    assert told == {"g": [Delta(id="b", tokens=[8])]}


def test_a_cancelled_id_may_be_used_again() -> None:
    life = engine()
    life.add(submit("a", [1]))
    planned(life)
    life.scheduler.cancel(["a"], "g")
    again = life.add(submit("a", [3]))
    assert [new.handle for new in planned(life).new] == [2]
    life.run()
    assert again.finish == "length"


# ---------------------------------------------------------------- blocks run out


def crowd() -> Engine:
    """Two that fit at first and not to the end."""
    life = engine(num_blocks=8, prefix_cache=False)
    life.add(submit("a", [1] * 8, max_tokens=16))
    life.add(submit("b", [3] * 8, max_tokens=16))
    return life


def crowded() -> tuple[Engine, Sequence[StepPlan]]:
    """A crowd, and its plans up to the one that preempts."""
    life = crowd()
    plans = [planned(life)]
    while not plans[-1].preempted:
        plans.append(planned(life))
    return life, plans


def test_the_youngest_is_preempted_and_keeps_what_it_emitted() -> None:
    life, plans = crowded()
    assert plans[-1].preempted == [2]
    assert plans[-1].decode == [1]
    assert life.scheduler.counters()["preemptions"] == 1
    life.run()
    for name in "ab":
        assert life.outcomes["g", name].tokens == [draw(1, position) for position in range(8, 24)]


def test_a_lower_priority_is_preempted_before_a_younger_request() -> None:
    life = engine(num_blocks=8, prefix_cache=False)
    life.add(submit("a", [1] * 8, max_tokens=16, priority=1))
    planned(life)
    life.add(submit("b", [3] * 8, max_tokens=16))
    plan = planned(life)
    while not plan.preempted:
        plan = planned(life)
    assert plan.preempted == [1]


def test_a_step_that_preempts_admits_no_one() -> None:
    _, plans = crowded()
    again = crowd()
    for _ in plans[:-1]:
        planned(again)
    again.add(submit("urgent", [4], max_tokens=2, priority=-1))
    plan = planned(again)
    assert (plan.preempted, plan.new) == ([2], [])
    assert [new.handle for new in planned(again).new] == [3]


def test_a_request_is_admitted_with_room_to_grow_by_a_block_if_it_can_grow() -> None:
    for max_tokens, admitted in [(5, []), (1, [2])]:
        life = engine(num_blocks=4, prefix_cache=False)
        life.add(submit("a", [1] * 5, max_tokens=3))
        planned(life)
        life.add(submit("b", [3] * 8, max_tokens=max_tokens))
        assert [new.handle for new in planned(life).new] == admitted


def test_a_preempted_sequence_comes_back_without_being_new() -> None:
    life, _ = crowded()
    length = len(life.replica.sequences[2].tokens)
    plan = planned(life)
    while 2 not in plan.placed:
        plan = planned(life)
    assert not plan.new
    assert plan.prefill == [Chunk(2, 0, min(length, 16))]


def test_a_preempted_sequence_comes_back_before_all_that_came_after_it() -> None:
    life, _ = crowded()
    life.add(submit("c", [4], max_tokens=2))
    plan = planned(life)
    while not plan.placed.keys() - {1}:
        plan = planned(life)
    assert min(plan.placed.keys() - {1}) == 2


def test_a_preempted_sequence_finds_its_own_blocks_in_the_prefix_cache() -> None:
    life = engine(num_blocks=10)
    life.add(submit("a", [1] * 8, max_tokens=30))
    life.add(submit("b", [3] * 8, max_tokens=20))
    plan = planned(life)
    while 2 not in plan.preempted:
        plan = planned(life)
    life.scheduler.cancel(["a"], "g")
    plan = planned(life)
    assert plan.prefill[0].start > 0
    assert life.outcomes["g", "b"].cached_tokens == 0


def test_a_preempted_sequence_can_be_cancelled() -> None:
    life, _ = crowded()
    life.scheduler.cancel(["b"], "g")
    assert planned(life).finished == [2]
    life.run()


# ---------------------------------------------------------------- prefix cache


def test_an_equal_prefix_is_computed_once_and_reported_with_the_first_token() -> None:
    life = engine()
    first = life.add(submit("a", [1] * 10, max_tokens=2))
    planned(life)
    second = life.add(submit("b", [1] * 10, max_tokens=2))
    assert planned(life).prefill == [Chunk(2, 8, 2)]
    life.run()
    assert (first.cached_tokens, second.cached_tokens) == (0, 8)
    assert life.scheduler.counters()["prefix_hit_tokens"] == 8


def test_a_prefix_is_not_shared_in_the_step_that_computes_it() -> None:
    life = engine()
    life.add(submit("a", [1] * 8))
    life.add(submit("b", [1] * 8))
    assert planned(life).prefill == [Chunk(1, 0, 8), Chunk(2, 0, 8)]


def test_an_answer_is_found_as_the_prefix_of_the_next_turn() -> None:
    life = engine()
    first = life.add(submit("a", [1] * 6, max_tokens=8))
    life.run()
    second = life.add(submit("b", [1] * 6 + first.tokens + [3], max_tokens=1))
    life.run()
    assert second.cached_tokens == 12


def test_a_prefix_is_found_under_its_own_salt_only() -> None:
    life = engine()
    prompt = [5] * 9
    asked = ["", "a", "b", "a", "", "c"]
    outcomes = []
    for place, salt in enumerate(asked):
        outcomes.append(life.add(submit(str(place), prompt, cache_salt=salt)))
        life.run()
    assert [one.cached_tokens for one in outcomes] == [0, 0, 0, 8, 8, 0]


def test_without_the_prefix_cache_everything_is_computed() -> None:
    life = engine(prefix_cache=False)
    life.add(submit("a", [1] * 8, max_tokens=1))
    life.run()
    life.add(submit("b", [1] * 8, max_tokens=1))
    assert planned(life).prefill == [Chunk(2, 0, 8)]


def test_shared_blocks_count_once_when_a_request_is_admitted() -> None:
    life = engine(num_blocks=8)
    life.add(submit("a", [1] * 16, max_tokens=4))
    planned(life)
    life.add(submit("b", [1] * 16 + [3], max_tokens=4))
    assert [new.handle for new in planned(life).new] == [2]


# ---------------------------------------------------------------- results and numbers


def test_results_are_grouped_by_owner_with_their_logprobs() -> None:
    scheduler = engine().scheduler
    for name, owner in [("a", "g"), ("b", "h"), ("c", "g")]:
        scheduler.add(submit(name, [1]), owner)
    plan = scheduler.schedule()
    assert plan is not None
    logprobs = TokenLogprobs(chosen=-1.0, top=[])
    told = scheduler.complete(plan, [5, 6, 7], [None, logprobs, None])
    assert told == {
        "g": [Delta(id="a", tokens=[5]), Delta(id="c", tokens=[7])],
        "h": [Delta(id="b", tokens=[6], logprobs=[logprobs])],
    }


def test_counters_fill_engine_stats() -> None:
    life = engine()
    life.add(submit("a", [1] * 5, max_tokens=3))
    planned(life)
    planned(life)
    stats = EngineStats(**life.scheduler.counters(), steps=2)
    assert (stats.running, stats.waiting, stats.prefill_tokens, stats.decode_tokens) == (1, 0, 5, 1)
    assert (stats.kv_blocks_used, stats.kv_blocks_total) == (2, 40)


def test_a_result_that_is_not_of_the_step_in_flight_changes_nothing() -> None:
    scheduler = engine().scheduler
    scheduler.add(submit("a", [1]), "g")
    plan = scheduler.schedule()
    assert plan is not None
    with pytest.raises(ProtocolError, match="samples 1 tokens, not 2"):
        scheduler.complete(plan, [5, 6])
    with pytest.raises(ProtocolError, match="is not the one in flight"):
        scheduler.complete(StepPlan(generation=3, number=9), [5])
    with pytest.raises(ProtocolError, match="has not been completed"):
        scheduler.schedule()
    assert scheduler.complete(plan, [5]) == {"g": [Delta(id="a", tokens=[5])]}


# ---------------------------------------------------------------- states and the queue


def request(handle: int, priority: int = 0) -> Request:
    return Request(
        handle=handle,
        id=str(handle),
        owner="g",
        sampling=Sampling(seed=0, max_tokens=1),
        priority=priority,
        prompt_len=1,
        tokens=[1],
        limit=2,
        stop_ids=frozenset(),
        table=BlockTable(),
    )


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("after", State)
def test_only_the_transitions_of_the_table_are_made(before: State, after: State) -> None:
    moved = request(1)
    moved.state = before
    if after in TRANSITIONS[before]:
        moved.move(after)
        assert moved.state is after
    else:
        with pytest.raises(ProtocolError, match=f"cannot go from {before.value} to {after.value}"):
            moved.move(after)
        assert moved.state is before


def test_the_queue_does_not_grow_with_requests_that_come_and_go() -> None:
    queue = WaitingQueue()
    first = request(0, priority=-1)
    queue.push(first)
    for handle in range(1, 1000):
        passing = request(handle)
        queue.push(passing)
        passing.move(State.ENDED)
        queue.discard()
    assert len(queue) == 1
    assert len(queue._heap) <= 3
    assert queue.head() is first


# ---------------------------------------------------------------- generated traces


@dataclass(frozen=True)
class Add:
    submit: Submit
    owner: str


@dataclass(frozen=True)
class Steps:
    count: int


@dataclass(frozen=True)
class CancelAt:
    index: int
    """Of the requests so far."""


@dataclass(frozen=True)
class Leave:
    owner: str


Action = Add | Steps | CancelAt | Leave


@st.composite
def submits(draw_from: st.DrawFn) -> Submit:
    """Prompts begin alike more often than not, so that they share blocks."""
    family = draw_from(st.integers(0, 2))
    length = draw_from(st.sampled_from([0, 8, 20, 33, 60]))
    tail = draw_from(st.lists(st.integers(3, 5), min_size=1, max_size=5))
    sampling = Sampling(
        seed=draw_from(st.integers(0, 5)),
        max_tokens=draw_from(st.sampled_from([1, 4, 15, 40])),
        min_tokens=draw_from(st.sampled_from([0, 0, 10])),
        stop_token_ids=draw_from(st.sampled_from([(), (), (7,), (7, 8)])),
        ignore_eos=draw_from(st.sampled_from([True, True, False])),
    )
    fresh = Submit(id="", prompt=[family] * length + tail, sampling=sampling, priority=draw_from(st.integers(0, 2)))
    fresh = msgspec.structs.replace(fresh, cache_salt=draw_from(st.sampled_from(["", "", "a", "b"])))
    emitted = answer(fresh)[0][: draw_from(st.sampled_from([0, 0, 0, 1, 9]))]
    return fresh if answer(fresh)[0] == emitted else msgspec.structs.replace(fresh, emitted=emitted)


OWNERS = st.sampled_from(["g", "g", "h"])
ARRIVALS = st.lists(st.builds(Add, submits(), OWNERS), min_size=4, max_size=16)
REST = st.lists(
    st.one_of(
        st.builds(Steps, st.integers(1, 12)),
        st.builds(Steps, st.integers(1, 12)),
        st.builds(CancelAt, st.integers(0, 15)),
        st.builds(Leave, OWNERS),
    ),
    max_size=16,
)


@st.composite
def traces(draw_from: st.DrawFn) -> list[Action]:
    """Several requests, with steps and leavings strewn in."""
    actions: list[Action] = list(draw_from(ARRIVALS))
    for other in draw_from(REST):
        actions.insert(draw_from(st.integers(1, len(actions))), other)
    return actions


@st.composite
def engines(draw_from: st.DrawFn) -> Engine:
    """From a cache that holds hardly more than the longest request to one that is never full."""
    block_size = draw_from(st.sampled_from([1, 2, 3, 4, 8]))
    limits = config(
        max_batched_tokens=draw_from(st.integers(16, 64)),
        max_running=draw_from(st.integers(2, 8)),
        block_size=block_size,
        prefix_cache=draw_from(st.booleans()),
    )
    return Engine(limits, draw_from(st.integers(70, 250)) // block_size)


def play(engine: Engine, actions: Sequence[Action]) -> dict[tuple[str, str], Submit]:
    """Every request that was accepted and not cancelled, by owner and id, once the trace has run to its end."""
    asked: dict[tuple[str, str], Submit] = {}
    for number, action in enumerate(actions):
        match action:
            case Add(fresh, owner):
                asked[owner, str(number)] = named = msgspec.structs.replace(fresh, id=str(number))
                engine.add(named, owner)
            case Steps(count):
                for _ in range(count):
                    engine.step()
            case CancelAt(index) if index < len(asked):
                owner, id_ = list(asked)[index]
                engine.scheduler.cancel([id_], owner)
                if not engine.outcomes[owner, id_].ended:
                    del asked[owner, id_]
            case Leave(owner):
                engine.scheduler.cancel_owner(owner)
                asked = {key: s for key, s in asked.items() if key[0] != owner or engine.outcomes[key].ended}
            case _:
                pass
    engine.run()
    return asked


@settings(max_examples=300)
@given(engines(), traces())
def test_every_request_ends_once_with_the_same_tokens_whatever_else_runs(
    engine: Engine, actions: Sequence[Action]
) -> None:
    """`Engine` checks blocks, budget, decodes, replica and KV content in every step on the way."""
    for key, accepted in play(engine, actions).items():
        outcome = engine.outcomes[key]
        assert outcome.ended
        if outcome.error is None:
            assert (outcome.tokens, outcome.finish) == answer(accepted)


@settings(max_examples=80)
@given(st.lists(submits(), min_size=4, max_size=12), st.integers(23, 40), st.data())
def test_tokens_do_not_depend_on_order_budget_blocks_or_the_cache(
    wanted: list[Submit], blocks: int, data: st.DataObject
) -> None:
    named = [msgspec.structs.replace(fresh, id=str(number)) for number, fresh in enumerate(wanted)]
    shuffled = data.draw(st.permutations(named))
    tight = Engine(config(max_batched_tokens=16, max_running=8, prefix_cache=True), blocks)
    roomy = Engine(config(max_batched_tokens=256, max_running=8, block_size=8, prefix_cache=False), 400)
    for fresh in named:
        tight.add(fresh)
    for fresh in shuffled:
        roomy.add(fresh)
    tight.run()
    roomy.run()
    for fresh in named:
        mine, other = tight.outcomes["g", fresh.id], roomy.outcomes["g", fresh.id]
        assert (mine.tokens, mine.finish) == (other.tokens, other.finish)

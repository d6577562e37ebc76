"""The journal against a model of a group that loses, repeats and restarts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from serving.errors import InvalidRequest, QueueFull
from serving.gateway.journal import TERMINAL, TRANSITIONS, Entry, Event, IllegalTransition, Journal, State
from serving.messages import Delta, Sampling, Submit


def entry(id_: str = "a", prompt: int = 3) -> Entry:
    return Entry(id_, list(range(prompt)), Sampling(seed=1, max_tokens=8))


def journal(**bounds: int) -> Journal:
    return Journal(**{"max_running": 4, "max_waiting": 4, "max_waiting_tokens": 100} | bounds)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("event", list(Event))
def test_an_illegal_event_raises_and_leaves_the_state_as_it_was(state: State, event: Event) -> None:
    one = entry()
    one.state = state
    if (state, event) in TRANSITIONS:
        one.advance(event)
        assert one.state == TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalTransition):
            one.advance(event)
        assert one.state == state


def test_nothing_leads_out_of_a_terminal_state() -> None:
    assert not {state for state, _ in TRANSITIONS} & TERMINAL


def test_a_resubmitted_entry_carries_what_its_client_has() -> None:
    book, one = journal(), entry()
    one.cache_salt = "alice"
    book.accept([one])
    first = book.submit(one)
    book.apply(Delta(id=first.id, tokens=[7, 8]))
    book.lose_link()
    again = book.submit(one)
    whole = Submit(id=again.id, prompt=[0, 1, 2], emitted=[7, 8], sampling=one.sampling, cache_salt="alice")
    assert again == whole
    assert again.id != first.id


def test_a_delta_of_an_earlier_link_belongs_to_nobody() -> None:
    book, one = journal(), entry()
    book.accept([one])
    old = book.submit(one).id
    book.lose_link()
    assert book.apply(Delta(id=old, tokens=[1])) is None
    book.submit(one)
    assert book.apply(Delta(id=old, tokens=[1], finish="length")) is None
    assert one.emitted == []
    assert one.live


def test_a_group_of_entries_is_accepted_whole_or_not_at_all() -> None:
    book = journal(max_running=2, max_waiting=1)
    book.accept([entry("a"), entry("b")])
    with pytest.raises(QueueFull):
        book.accept([entry("c"), entry("d")])
    assert [one.id for one in book.entries] == ["a", "b"]
    with pytest.raises(InvalidRequest):
        book.accept([entry(str(place)) for place in range(4)])


def test_prompt_tokens_that_wait_are_bounded_and_free_again_with_the_first_token() -> None:
    book = journal(max_waiting_tokens=10)
    big, small = entry("big", 50), entry("small", 5)
    book.accept([big])
    with pytest.raises(QueueFull):
        book.accept([small])
    book.apply(Delta(id=book.submit(big).id, tokens=[1], cached_tokens=16))
    assert big.cached_tokens == 16
    book.accept([small])
    assert book.waiting_tokens == 5


def test_ending_tells_which_entries_the_engine_still_knows() -> None:
    book, on_link, waiting = journal(), entry("a"), entry("b")
    book.accept([on_link, waiting])
    wire_id = book.submit(on_link).id
    assert book.end([on_link, waiting], Event.CANCEL) == [wire_id]
    assert len(book) == 0
    assert book.waiting_tokens == 0


def test_an_error_of_the_engine_fails_the_entry() -> None:
    book, one = journal(), entry()
    book.accept([one])
    assert book.apply(Delta(id=book.submit(one).id, error="no")) is one
    assert one.state is State.FAILED


class AnyLife(RuleBasedStateMachine):
    """An engine whose token at a position is that position, over links that lose and repeat what was sent."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.book = journal(max_waiting=10**6, max_waiting_tokens=10**9)
        self.count = 0
        self.live: dict[str, Entry] = {}
        self.engine: dict[str, tuple[Submit, int]] = {}
        self.in_flight: list[Delta] = []
        self.old: list[Delta] = []
        self.ends: dict[str, int] = {}

    @rule(target=requests, length=st.integers(1, 6))
    def accept(self, length: int) -> Entry:
        self.count += 1
        one = Entry(f"r{self.count}", [1, 2], Sampling(seed=1, max_tokens=length))
        self.book.accept([one])
        self.live[one.id] = one
        self.ends[one.id] = 0
        return one

    @rule()
    def submit_what_waits(self) -> None:
        for one in self.book.entries:
            if one.state is State.WAITING:
                submit = self.book.submit(one)
                self.engine[submit.id] = (submit, len(submit.emitted))

    @rule(most=st.integers(1, 3))
    def step(self, most: int) -> None:
        for id_, (submit, done) in list(self.engine.items()):
            upto = min(done + most, submit.sampling.max_tokens)
            finish = upto == submit.sampling.max_tokens
            delta = Delta(id=id_, tokens=list(range(done, upto)), finish="length" if finish else None)
            self.in_flight.append(delta)
            self.engine[id_] = (submit, upto)
            if finish:
                del self.engine[id_]

    @rule(count=st.integers(1, 5))
    def deliver(self, count: int) -> None:
        for delta in self.in_flight[:count]:
            self.hand_over(delta)
        self.old += self.in_flight[:count]
        del self.in_flight[:count]

    def hand_over(self, delta: Delta) -> None:
        one = self.book.apply(delta)
        if one is not None and not one.live:
            self.ends[one.id] += 1
            assert one.emitted == list(range(one.sampling.max_tokens))

    @rule()
    def restart(self) -> None:
        self.book.lose_link()
        self.old += self.in_flight
        self.in_flight.clear()
        self.engine.clear()

    @rule(data=st.data())
    def a_message_of_an_old_generation_comes(self, data: st.DataObject) -> None:
        stale = [delta for delta in self.old if delta.id not in {one.wire_id for one in self.book.entries}]
        if stale:
            assert self.book.apply(data.draw(st.sampled_from(stale))) is None

    @rule(one=consumes(requests))
    def cancel(self, one: Entry) -> None:
        if one.live:
            for id_ in self.book.end([one], Event.CANCEL):
                self.engine.pop(id_, None)
            self.ends[one.id] += 1

    @invariant()
    def tokens_come_exactly_once_and_in_order(self) -> None:
        for one in self.live.values():
            assert one.emitted == list(range(len(one.emitted)))

    @invariant()
    def each_request_ends_at_most_once_and_is_then_forgotten(self) -> None:
        known = {one.id for one in self.book.entries}
        for id_, one in self.live.items():
            assert self.ends[id_] == (0 if one.live else 1)
            assert (id_ in known) == one.live
        waiting = [one for one in self.live.values() if one.live and not one.emitted]
        assert self.book.waiting_tokens == 2 * len(waiting)

    def teardown(self) -> None:
        self.restart()
        self.submit_what_waits()
        self.step(10)
        self.deliver(10**6)
        assert len(self.book) == 0
        assert self.book.waiting_tokens == 0
        assert all(count == 1 for count in self.ends.values())


AnyLife.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestAnyLife = AnyLife.TestCase


@given(st.lists(st.integers(1, 4), max_size=8))
def test_bounds_hold_for_any_sequence_of_requests(sizes: list[int]) -> None:
    book = journal(max_running=3, max_waiting=2)
    for number, size in enumerate(sizes):
        before = len(book)
        try:
            book.accept([entry(f"{number}-{child}") for child in range(size)])
        except QueueFull:
            assert before + size > 5
        assert len(book) <= 5

from typing import Any

import pytest

from serving.config import FaultConfig
from serving.messages import Endpoint, GroupState, RankInfo, Snapshot
from serving.runtime.registry.group_state import TRANSITIONS, IllegalTransition, Lifecycle

ENDPOINT = Endpoint(address="tcp://10.0.0.1:1", server_public="s", client_public="p", client_secret="c")
LIMITS = FaultConfig(max_restarts=2, restart_window_s=100)
STATES: list[GroupState] = list(TRANSITIONS)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def rank(number: int, **facts: Any) -> RankInfo:
    return RankInfo(rank=number, node_id="n", ip="10.0.0.1", pid=number, device="cpu", **facts)


def formed(clock: Clock | None = None) -> Lifecycle:
    life = Lifecycle(LIMITS, clock or Clock())
    life.form([rank(0), rank(1)])
    return life


def in_state(state: GroupState) -> Lifecycle:
    life = Lifecycle(LIMITS, Clock())
    life.snapshot = Snapshot(version=7, generation=1, state=state, ranks=[rank(0)])
    return life


def test_a_new_group_loads_and_then_is_ready_with_an_endpoint() -> None:
    life = formed()
    assert (life.snapshot.state, life.snapshot.generation) == ("loading", 1)
    life.ready(1, ENDPOINT)
    assert (life.snapshot.state, life.snapshot.endpoint) == ("ready", ENDPOINT)


def test_every_change_raises_the_version_and_none_leaves_it() -> None:
    life = formed()
    versions = [life.snapshot.version]
    life.report(1, rank(0, loaded_bytes=5))
    versions.append(life.snapshot.version)
    life.report(1, rank(0, loaded_bytes=5))
    assert versions == sorted(set(versions))
    assert life.snapshot.version == versions[-1]


def test_a_report_of_an_older_generation_changes_nothing() -> None:
    life = formed()
    life.fail(1, "broke")
    life.form([rank(0), rank(1)])
    before = life.snapshot
    life.report(1, rank(0, loaded_bytes=5))
    life.ready(1, ENDPOINT)
    life.fail(1, "late")
    assert life.snapshot is before


def test_how_far_a_job_is_outlives_the_generation_that_computed_it() -> None:
    life = formed()
    life.advance({"rows": 3})
    life.fail(1, "broke")
    life.form([rank(0), rank(1)])
    assert life.snapshot.progress == {"rows": 3}
    forgetful = Lifecycle(LIMITS, Clock())
    forgetful.restore(life.snapshot)
    assert forgetful.snapshot.progress == {"rows": 3}


def test_a_generation_breaks_once_however_many_ranks_say_so() -> None:
    life = formed()
    assert life.fail(1, "rank 0 broke")
    assert life.fail(1, "rank 1 broke")
    assert (life.snapshot.state, life.snapshot.restarts, life.snapshot.breaks) == ("restarting", 1, 1)
    assert life.snapshot.first_failure == "rank 0 broke"


def test_a_break_takes_the_endpoint_away() -> None:
    life = formed()
    life.ready(1, ENDPOINT)
    life.fail(1, "broke")
    assert life.snapshot.endpoint is None


def test_a_rank_that_lost_its_peer_gives_way_to_the_peers_own_reason() -> None:
    life = formed()
    life.fail(1, "rank 0 lost rank 1", collateral=True)
    life.fail(1, "rank 1 ran out of memory")
    life.fail(1, "rank 2 died")
    assert life.snapshot.first_failure == life.snapshot.last_failure == "rank 1 ran out of memory"


def test_the_first_failure_is_kept_and_the_last_is_shown_beside_it() -> None:
    life = formed()
    life.fail(1, "first")
    life.form([rank(0)])
    life.fail(2, "lost a peer", collateral=True)
    life.fail(2, "second")
    assert (life.snapshot.first_failure, life.snapshot.last_failure) == ("first", "second")


def test_more_restarts_in_the_window_than_allowed_fail_the_group_for_good() -> None:
    life = formed()
    for generation in (1, 2):
        assert life.fail(generation, f"break {generation}")
        life.form([rank(0)])
    assert not life.fail(3, "break 3")
    assert (life.snapshot.state, life.snapshot.first_failure) == ("failed", "break 1")


def test_breaks_that_lie_further_back_than_the_window_do_not_count() -> None:
    clock = Clock()
    life = formed(clock)
    for generation in range(1, 6):
        assert life.fail(generation, "break")
        life.form([rank(0)])
        clock.now += LIMITS.restart_window_s
    assert life.snapshot.state == "loading"


def test_a_final_failure_is_not_tried_again() -> None:
    life = formed()
    assert not life.fail(1, "no such model", final=True)
    assert life.snapshot.state == "failed"


def test_a_final_reason_ends_a_group_that_was_to_restart() -> None:
    life = formed()
    life.fail(1, "lost a peer", collateral=True)
    assert not life.fail(1, "wrong model", final=True)
    assert (life.snapshot.state, life.snapshot.first_failure) == ("failed", "wrong model")


def test_a_group_that_moves_off_a_draining_node_is_formed_anew_without_a_failure() -> None:
    life = formed()
    life.ready(1, ENDPOINT)
    assert life.form([rank(0), rank(1)]) == 2
    assert (life.snapshot.state, life.snapshot.restarts, life.snapshot.first_failure) == ("loading", 1, None)
    assert life.snapshot.endpoint is None


def test_a_draining_group_keeps_computing_until_it_is_stopped() -> None:
    life = formed()
    life.ready(1, ENDPOINT)
    life.drain()
    assert (life.snapshot.state, life.snapshot.endpoint) == ("draining", ENDPOINT)
    life.stop()
    life.stop()
    assert life.snapshot.state == "stopped"


def test_a_group_that_breaks_while_it_drains_is_not_formed_again() -> None:
    life = formed()
    life.drain()
    assert not life.fail(1, "broke")
    assert (life.snapshot.state, life.snapshot.last_failure) == ("stopped", "broke")


@pytest.mark.parametrize("state", [state for state in STATES if "loading" not in TRANSITIONS[state]])
def test_no_generation_is_formed_once_the_group_has_ended(state: GroupState) -> None:
    life = in_state(state)
    before = life.snapshot
    with pytest.raises(IllegalTransition):
        life.form([rank(0)])
    assert life.snapshot is before
    assert life.ended


@pytest.mark.parametrize("state", [state for state in STATES if "draining" not in TRANSITIONS[state]])
def test_what_has_ended_cannot_drain(state: GroupState) -> None:
    life = in_state(state)
    before = life.snapshot
    with pytest.raises(IllegalTransition):
        life.drain()
    assert life.snapshot is before


@pytest.mark.parametrize("state", ["restarting", "failed", "stopped"])
def test_a_generation_that_broke_cannot_become_ready(state: GroupState) -> None:
    life = in_state(state)
    before = life.snapshot
    life.ready(1, ENDPOINT)
    assert life.snapshot is before


def test_a_registry_without_memory_takes_over_what_rank_0_knows_under_a_new_version() -> None:
    known = Snapshot(version=30, generation=3, state="ready", endpoint=ENDPOINT, restarts=2)
    life = Lifecycle(LIMITS, Clock())
    life.restore(known)
    assert life.snapshot.version > known.version
    assert (life.snapshot.generation, life.snapshot.state, life.snapshot.endpoint) == (3, "ready", ENDPOINT)


def test_a_registry_with_a_memory_of_its_own_keeps_it() -> None:
    life = formed()
    before = life.snapshot
    life.restore(Snapshot(version=30, generation=3, state="ready"))
    assert life.snapshot is before


def test_a_registry_that_was_told_to_drain_while_it_had_no_memory_drains() -> None:
    life = Lifecycle(LIMITS, Clock())
    life.drain()
    life.restore(Snapshot(version=30, generation=3, state="ready", endpoint=ENDPOINT))
    assert (life.snapshot.state, life.snapshot.endpoint) == ("draining", ENDPOINT)


def test_a_generation_that_is_formed_without_memory_counts_on_from_what_formed_it_knows() -> None:
    life = Lifecycle(LIMITS, Clock())
    assert life.form([rank(0)], after=7) == 8


def test_a_generation_that_is_told_ready_twice_is_ready_once() -> None:
    life = formed()
    life.ready(1, ENDPOINT)
    before = life.snapshot
    life.ready(1, ENDPOINT)
    assert life.snapshot is before


def test_attempts_that_break_before_they_form_a_generation_count_until_the_group_has_failed() -> None:
    life = formed(Clock())
    assert [life.fail(1, f"attempt {number}", again=True) for number in range(4)] == [True, True, False, False]
    assert (life.snapshot.state, life.snapshot.first_failure) == ("failed", "attempt 0")


def test_a_group_that_is_handed_over_awaits_its_next_generation_and_nothing_broke() -> None:
    life = formed()
    life.own("first", True)
    life.ready(1, ENDPOINT)
    life.hand_over("second")
    now = life.snapshot
    assert (now.state, now.owner, now.brought_serve, now.endpoint) == ("restarting", "second", True, None)
    assert (now.restarts, now.first_failure, now.last_failure) == (0, None, None)
    assert life.form([rank(0)]) == 2
    assert (life.snapshot.owner, life.snapshot.restarts) == ("second", 0)


def test_what_becomes_of_the_old_generation_after_a_hand_over_is_no_break() -> None:
    life = formed()
    life.fail(1, "lost a peer", collateral=True)
    life.hand_over("second")
    before = life.snapshot
    assert life.fail(1, "rank 0 was ended")
    life.ready(1, ENDPOINT)
    assert life.snapshot is before


@pytest.mark.parametrize("state", [state for state in STATES if "restarting" not in TRANSITIONS[state]])
def test_a_group_that_has_ended_is_not_handed_over(state: GroupState) -> None:
    life = in_state(state)
    before = life.snapshot
    with pytest.raises(IllegalTransition):
        life.hand_over("second")
    assert life.snapshot is before
    assert life.ended


def test_a_registry_without_memory_takes_the_owner_over_from_rank_0() -> None:
    life = Lifecycle(LIMITS, Clock())
    life.restore(Snapshot(version=30, generation=3, state="ready", endpoint=ENDPOINT, owner="first"))
    assert (life.snapshot.owner, life.snapshot.state) == ("first", "ready")


def test_a_group_that_was_handed_over_while_the_registry_had_no_memory_stays_so() -> None:
    life = Lifecycle(LIMITS, Clock())
    life.hand_over("second")
    life.restore(Snapshot(version=30, generation=3, state="ready", endpoint=ENDPOINT, owner="first"))
    now = life.snapshot
    assert (now.generation, now.owner, now.state, now.endpoint) == (3, "second", "restarting", None)

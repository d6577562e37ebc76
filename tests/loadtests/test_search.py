import pytest

from loadtests.search import Climb, Objective, Window

OBJECTIVE = Objective(ttft_ms=500, percent=95)


def window(rate: float, **changes: float) -> Window:
    """A step of 20 s that holds."""
    seen = {"seconds": 20.0, "firsts": 20 * rate, "failures": 0, "ttft_ms": 100.0} | changes
    return Window(rate, seen["seconds"], int(seen["firsts"]), int(seen["failures"]), seen["ttft_ms"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ttft_ms": 501}, "TTFT p95 was 501 ms"),
        ({"firsts": 150}, "150 first tokens came where 200 requests were sent"),
        ({"firsts": 0}, "0 first tokens"),
        ({"failures": 3}, "3 of 200 requests failed"),
    ],
)
def test_each_way_to_break_the_objective_is_named(changes: dict[str, float], said: str) -> None:
    assert said in (window(10, **changes).breach(OBJECTIVE) or "")


def test_fewer_arrivals_than_expected_may_be_chance() -> None:
    assert window(10, firsts=165).breach(OBJECTIVE) is None


def test_the_rate_climbs_until_it_breaks_and_the_last_that_held_is_the_answer() -> None:
    said: list[str] = []
    climb = Climb(OBJECTIVE, step=2, limit=100, say=said.append)
    while not climb.over:
        climb.judge(window(climb.rate, ttft_ms=100 * climb.rate))
    assert said[-1] == (
        "Highest arrival rate that held TTFT p95 within 500 ms: 4 requests/s; at 6 TTFT p95 was 600 ms."
    )


def test_a_first_step_that_breaks_is_said_to_have_held_nothing() -> None:
    said: list[str] = []
    climb = Climb(OBJECTIVE, step=2, limit=100, say=said.append)
    climb.judge(window(2, ttft_ms=900))
    assert climb.over
    assert said[-1] == "Not even 2 requests/s held TTFT p95 within 500 ms: TTFT p95 was 900 ms."


def test_the_climb_ends_at_its_limit() -> None:
    said: list[str] = []
    climb = Climb(OBJECTIVE, step=2, limit=2, say=said.append)
    climb.judge(window(2))
    assert climb.over
    assert "2 requests/s; higher rates were not tried" in said[-1]

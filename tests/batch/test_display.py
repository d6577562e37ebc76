"""What a person is told of a job's speed, by a clock that the test moves."""

from msgspec.structs import replace

from serving.batch.display import Meter
from serving.batch.output.checkpoint import Progress

BEGUN = Progress(job="j", rows=10, offset=100, failed=1, prompt_tokens=50, completion_tokens=20)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def meter_and_clock() -> tuple[Meter, Clock]:
    clock = Clock()
    return Meter(BEGUN, 400, clock), clock


def test_speed_counts_what_this_start_did_from_when_the_group_was_ready() -> None:
    meter, clock = meter_and_clock()
    clock.now += 60  # the group is formed
    meter.start()
    clock.now += 4
    now = replace(BEGUN, rows=30, offset=200, failed=1, completion_tokens=120)
    assert meter.line(now) == "30 rows, 50%, 5.0 rows/s, 25.0 tokens/s, 1 with an error"


def test_taking_the_group_down_does_not_count() -> None:
    meter, clock = meter_and_clock()
    meter.start()
    clock.now += 10
    meter.stop()
    clock.now += 90
    done = replace(BEGUN, rows=40, offset=400, prompt_tokens=200, completion_tokens=220)
    assert meter.summary(done) == (
        "40 rows, 1 with an error; 200 prompt tokens, 220 computed; 10.0 s, 20.0 tokens/s, "
        "after 10 rows of an earlier start"
    )


def test_nothing_is_divided_by_zero_before_the_group_is_ready() -> None:
    meter, _ = meter_and_clock()
    assert meter.line(BEGUN) == "10 rows, 25%, 0.0 rows/s, 0.0 tokens/s, 1 with an error"
    assert "0.0 tokens/s" in meter.summary(BEGUN)

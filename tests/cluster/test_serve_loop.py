"""What the head of a standing cluster submits, and when. With real Ray: `tests/kube/test_both_worlds.py`."""

from typing import Any

import pytest

from cluster.manifests.serve_loop import attempt, is_tried_again, latest, next_attempt, request

Job = dict[str, Any]


def job(status: str, number: int = 0, start: int = 1) -> Job:
    return request("gangway serve", number) | {"status": status, "start_time": start}


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        (None, 0),
        (job("PENDING"), None),
        (job("RUNNING"), None),
        (job("SUCCEEDED"), None),
        (job("STOPPED"), None),
        (job("FAILED"), 1),
        (job("FAILED", 2), 3),
        (job("FAILED", 3), None),
        (job("STOPPED", 1), None),
    ],
)
def test_a_command_is_submitted_once_and_again_when_it_has_failed(before: Job | None, wanted: int | None) -> None:
    assert next_attempt(before, retries=3) == wanted


def test_without_retries_a_failure_is_the_end() -> None:
    assert not is_tried_again(job("FAILED"), retries=0)


def test_the_latest_of_the_serving_jobs_counts_whatever_else_was_submitted() -> None:
    others: list[Job] = [
        {"status": "RUNNING", "metadata": None, "start_time": 9},
        {"status": "FAILED", "metadata": {"a": "b"}},
    ]
    assert latest(others) is None
    assert latest([*others, job("STOPPED", start=1), job("RUNNING", 4, start=3), job("FAILED", start=2)]) == job(
        "RUNNING", 4, start=3
    )


def test_the_attempt_travels_with_the_job() -> None:
    assert attempt(request("gangway serve", 7)) == 7

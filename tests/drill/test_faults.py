"""Faults by name and by command, on processes of the test's own."""

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from serving.errors import ConfigError, OperatorError
from serving.tools.drill.faults import WrongTarget, make_fault
from tests.fake_engine import until
from tests.fake_server import spawn


@pytest.fixture
def status() -> Iterator[dict[str, Any]]:
    """Two ranks that are processes."""
    processes = [spawn(), spawn()]
    yield {"ranks": [{"rank": rank, "pid": one.pid, "ip": "10.0.0.1"} for rank, one in enumerate(processes)]}
    for process in processes:
        process.kill()
        process.wait()


def states(status: dict[str, Any]) -> list[str]:
    return [psutil.Process(entry["pid"]).status() for entry in status["ranks"]]


@pytest.mark.parametrize(
    ("name", "command", "heal", "told"),
    [
        (None, None, None, "either --fault"),
        ("kill-rank1", "true", None, "either --fault"),
        ("kill-rank1", None, "true", "--heal"),
        ("kill-gateway", None, None, "kill-gateway"),
        ("stop-all", None, None, "stop-all"),
        (None, "echo 'open", None, "No closing quotation"),
        (None, " ", None, "at least one word"),
    ],
)
def test_what_is_no_fault_is_refused_with_what_there_is(
    name: str | None, command: str | None, heal: str | None, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        make_fault(name, command, heal)


async def test_killing_a_rank_spares_the_others(status: dict[str, Any]) -> None:
    fault = make_fault("kill-rank1", None, None)
    fault.aim(status)
    await fault.strike()
    await until(lambda: states(status)[1] == psutil.STATUS_ZOMBIE)
    assert states(status)[0] != psutil.STATUS_ZOMBIE


async def test_killing_all_spares_none(status: dict[str, Any]) -> None:
    fault = make_fault("kill-all", None, None)
    fault.aim(status)
    await fault.strike()
    await until(lambda: states(status) == [psutil.STATUS_ZOMBIE] * 2)


@pytest.mark.parametrize("restarted", [True, False])
async def test_a_stopped_rank_is_killed_if_it_was_replaced_and_else_goes_on(
    status: dict[str, Any], restarted: bool
) -> None:
    fault = make_fault("stop-rank0", None, None)
    fault.aim(status)
    await fault.strike()
    await until(lambda: states(status)[0] == psutil.STATUS_STOPPED)
    await fault.heal(restarted=restarted)
    await until(lambda: states(status)[0] == (psutil.STATUS_ZOMBIE if restarted else psutil.STATUS_SLEEPING))


async def test_a_target_that_has_ended_by_itself_is_no_error(status: dict[str, Any]) -> None:
    fault = make_fault("kill-rank0", None, None)
    fault.aim(status)
    target = psutil.Process(status["ranks"][0]["pid"])
    target.kill()
    await asyncio.to_thread(target.wait)
    await fault.strike()
    assert not target.is_running()


def test_a_rank_that_does_not_exist_is_no_target(status: dict[str, Any]) -> None:
    with pytest.raises(WrongTarget, match="has 0, 1"):
        make_fault("kill-rank2", None, None).aim(status)
    with pytest.raises(WrongTarget, match="has none"):
        make_fault("kill-all", None, None).aim({"ranks": []})


def test_a_pid_that_is_not_here_or_is_another_program_is_no_target() -> None:
    fault = make_fault("kill-rank0", None, None)
    with pytest.raises(WrongTarget, match="no Ray Train worker"):
        fault.aim({"ranks": [{"rank": 0, "pid": os.getpid(), "ip": "10.0.0.2"}]})
    with pytest.raises(WrongTarget, match=r"10\.0\.0\.2.*no such process"):
        fault.aim({"ranks": [{"rank": 0, "pid": 2**31 - 1, "ip": "10.0.0.2"}]})


async def test_a_command_that_fails_tells_what_it_said() -> None:
    with pytest.raises(OperatorError, match=r"exited with 2: .*missing"):
        await make_fault(None, "ls /missing", None).strike()
    with pytest.raises(OperatorError, match="no-such-command"):
        await make_fault(None, "no-such-command", None).strike()

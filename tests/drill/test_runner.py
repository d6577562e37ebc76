"""The drill against a server whose one rank is a process that can be killed and stopped in earnest."""

import io
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from serving.errors import OperatorError
from serving.tools.drill.faults import make_fault
from serving.tools.drill.poison import PoisonFault
from serving.tools.drill.prober import DrillError, make_client
from serving.tools.drill.recovery import DrillReport
from serving.tools.drill.runner import DrillPlan, run_drill
from tests.fake_server import FakeServer, fake_server, spawn
from tests.test_cli import gangway, one_sentence


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


def plan(fake: FakeServer, fault: str | None, command: str | None = None, heal: str | None = None) -> DrillPlan:
    what = make_fault(fault, command, heal)
    return DrillPlan(url=fake.url, fault=what, times=1, streams=4, plain=2, max_tokens=60, timeout_s=30)


async def drill(plan: DrillPlan) -> DrillReport:
    return await run_drill(plan, lambda _: None)


async def test_each_killed_rank_makes_a_round_that_loses_nothing(fake: FakeServer) -> None:
    report = await drill(replace(plan(fake, "kill-rank0"), times=2))
    assert [one.number for one in report.rounds] == [1, 2]
    for one in report.rounds:
        assert (one.in_flight, one.lost, one.wrong) == (6, [], [])
        moments = one.timeline
        assert None not in moments.values()
        assert (moments.not_ready or 0) < (moments.resumed or 0) <= (moments.ended or 0)
    assert (fake.generation, report.verdict()) == (3, None)


async def test_a_request_that_ends_in_an_error_is_lost_whether_it_streams_or_not(fake: FakeServer) -> None:
    fake.behaviour.lose_at_restart = True
    report = await drill(plan(fake, "kill-all"))
    lost = report.rounds[0].lost
    assert (lost.count("rank 0 died"), sum("status 503" in reason for reason in lost)) == (4, 2)
    assert "requests lost: 6 (the first: rank 0 died)" in str(report.verdict())


async def test_a_text_that_goes_on_otherwise_is_wrong_from_there_on(fake: FakeServer) -> None:
    fake.behaviour.garble_at_restart = True
    # Of streams alone is it known that they have begun when the fault strikes.
    report = await drill(replace(plan(fake, "kill-rank0"), streams=6, plain=0))
    assert report.rounds[0].lost == []
    assert sorted(one.prompt for one in report.rounds[0].wrong) == list(range(6))
    assert all(one.character > 0 for one in report.rounds[0].wrong)
    assert "texts wrong: 6" in str(report.verdict())


async def test_a_stopped_rank_that_nobody_replaces_goes_on_when_it_is_healed(fake: FakeServer) -> None:
    stopped = psutil.Process(fake.rank.pid)
    report = await drill(replace(plan(fake, "stop-rank0"), heal_after_s=0.1))
    assert (report.rounds[0].lost, report.rounds[0].timeline.restarted) == ([], None)
    assert stopped.status() != psutil.STATUS_STOPPED


async def test_a_command_is_the_fault_and_another_heals_it(fake: FakeServer, tmp_path: Path) -> None:
    done, undone = tmp_path / "done", tmp_path / "undone with a space"
    report = await drill(plan(fake, None, f"touch {done}", f"touch {shlex.quote(str(undone))}"))
    assert done.exists()
    assert undone.exists()
    moments = report.rounds[0].timeline
    assert (moments.detected, moments.resumed, report.verdict()) == (None, None, None)
    assert moments.ended is not None
    out = io.StringIO()
    Console(file=out, width=200).print(report.table())
    assert "-" in next(line.split() for line in out.getvalue().splitlines() if line.split()[:1] == ["median"])


def poison(fake: FakeServer) -> DrillPlan:
    fault = PoisonFault(lambda: make_client(fake.url, None, 30))
    return DrillPlan(url=fake.url, fault=fault, times=2, streams=4, plain=2, max_tokens=20, timeout_s=30)


async def test_poison_breaks_each_generation_until_it_is_given_up(fake: FakeServer) -> None:
    fake.behaviour.gives_up_after = 3
    report = await drill(poison(fake))
    assert report.verdict() is None
    assert (len(fake.given_up), fake.generation) == (2, 7)


async def test_poison_that_is_never_given_up_fails_the_drill(fake: FakeServer) -> None:
    fake.behaviour.end_after = 20
    with pytest.raises(OperatorError, match="should have ended in request_breaks_group, not in a complete answer"):
        await drill(poison(fake))


async def test_an_equal_request_that_is_computed_again_fails_the_drill(fake: FakeServer) -> None:
    fake.behaviour.gives_up_after = 1
    fake.given_up = Forgetful()
    with pytest.raises(OperatorError, match="an equal request was computed"):
        await drill(poison(fake))


class Forgetful(set[str]):
    """Refuses once what was added, and has forgotten it then."""

    def __contains__(self, prompt: object) -> bool:
        known = super().__contains__(prompt)
        self.discard(str(prompt))
        return known


async def test_a_fault_that_cannot_be_done_is_healed_all_the_same(fake: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="false exited with 1"):
        await drill(plan(fake, None, "false", f"touch {tmp_path / 'undone'}"))
    assert (tmp_path / "undone").exists()


async def test_a_group_that_has_failed_for_good_ends_the_drill_with_its_reason(fake: FakeServer) -> None:
    fake.behaviour.fail_at_restart = True
    with pytest.raises(DrillError, match=r"failed: rank 0 died; .*max_restarts"):
        await drill(plan(fake, "kill-rank0"))


async def test_a_server_that_ends_answers_early_cannot_be_drilled(fake: FakeServer) -> None:
    fake.behaviour.end_after = 5
    with pytest.raises(DrillError, match=r"before any fault: ended \(length\) after 5 tokens"):
        await drill(plan(fake, "kill-rank0"))
    assert fake.rank.poll() is None


async def test_a_server_that_never_comes_to_rest_cannot_be_drilled(fake: FakeServer) -> None:
    fake.running = 1
    with pytest.raises(DrillError, match="1 KV blocks in use"):
        await drill(replace(plan(fake, "kill-rank0"), wait_s=5))


def command(fake: FakeServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    few = ("--times", "1", "--streams", "2", "--plain", "1", "--max-tokens", "60")
    return gangway("drill", "--url", fake.url, *few, *arguments)


def test_the_command_prints_json_and_exits_0_when_all_went_well(fake: FakeServer) -> None:
    done = command(fake, "--fault", "kill-rank0", "--json", "--budget", "60")
    assert done.returncode == 0, done
    report = json.loads(done.stdout)
    assert (report["fault"], report["requests"], len(report["rounds"])) == ("kill-rank0", 3, 1)
    assert 0 < report["median"]["resumed"] == report["maximum"]["resumed"]


def test_the_command_prints_the_table_and_exits_1_when_something_is_lost(fake: FakeServer) -> None:
    fake.behaviour.lose_at_restart = True
    done = command(fake, "--fault", "kill-rank0")
    assert done.returncode == 1, done
    assert "median" in done.stdout
    assert "requests lost: 3" in done.stderr.splitlines()[-1]


def test_a_rank_that_is_no_ray_worker_here_is_left_alone_with_exit_2(fake: FakeServer) -> None:
    worker, fake.rank = fake.rank, spawn("somebody-else")
    try:
        told = one_sentence(command(fake, "--fault", "kill-rank0"), 2)
        assert "no Ray Train worker" in told
        assert fake.rank.poll() is None
    finally:
        worker.kill()
        worker.wait()


def test_a_server_that_is_not_there_exits_1() -> None:
    done = gangway("drill", "--url", "http://127.0.0.1:9", "--fault", "kill-rank0", "--wait", "0.2")
    assert "127.0.0.1:9 is not ready" in one_sentence(done, 1)


def test_importing_the_drill_brings_no_torch() -> None:
    code = "import sys, serving.tools.drill; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Locust itself, in a process of its own, against the real application over a fake group."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests import gate, plot
from tests.api.conftest import Server, listening
from tests.fake_engine import fake_group
from tests.gateway.conftest import make_config
from tests.loadtests.run import ROOT, run_locust

STREAMED = {"stream", "chat", "document", "burst"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    config = make_config("engine.max_running=32", "http.max_waiting=64")
    with fake_group() as group, listening(group, config) as server:
        group.behaviour.pause_s = 0.005  # or all tokens would come in one event
        yield server


def rows(results: Path) -> dict[tuple[str, str], dict[str, str]]:
    with Path(f"{results}_stats.csv").open(newline="") as lines:
        return {(row["Type"], row["Name"]): row for row in csv.DictReader(lines)}


def test_every_kind_of_user_is_answered_and_timed_in_rows_of_its_own(server: Server, tmp_path: Path) -> None:
    results = tmp_path / "load"
    said = run_locust(server.url, results, "--users", "10", "--spawn-rate", "10", "--run-time", "6s", "--seed", "1")
    table = rows(results)
    assert {name for kind, name in table if kind == "total"} == STREAMED | {"plain", "impatient", "wrong"}, said
    assert {name for kind, name in table if kind == "TTFT"} >= STREAMED
    assert {name for kind, name in table if kind == "inter-token"} >= STREAMED
    assert table["", "Aggregated"]["Failure Count"] == "0", said
    assert gate.main([str(ROOT / "loadtests/gate.yaml"), f"{results}_stats.csv"]) == 0
    assert plot.main([f"{results}_stats_history.csv", f"{results}.svg"]) == 0
    assert Path(f"{results}.svg").read_text().count("first token, ms") == 1
    assert "Locust" in Path(f"{results}.html").read_text()


def test_the_search_for_saturation_prints_the_rate_that_held(server: Server, tmp_path: Path) -> None:
    options = "--tags", "open", "--step-rate", "20", "--max-rate", "30", "--step-seconds", "3", "--slo-ttft-ms", "5000"
    files = "loadtests/locustfile.py,loadtests/shapes/saturation.py"
    results = tmp_path / "load"
    said = run_locust(server.url, results, *options, files=files)
    assert "Highest arrival rate that held TTFT p95 within 5000 ms: 20 requests/s" in said
    assert int(rows(results)["total", "open"]["Request Count"]) < 110  # 60 in 3 s; new sources come without a burst


def test_the_same_seed_sends_the_same_prompts_and_another_seed_others(server: Server, tmp_path: Path) -> None:
    def sent(seed: int) -> list[list[int]]:
        assert server.group.engine is not None
        before = len(server.group.engine.submitted)
        options = "--tags", "chat", "--users", "1", "--run-time", "4s", "--seed", str(seed)
        run_locust(server.url, tmp_path / "load", *options)
        return [submit.prompt for submit in server.group.engine.submitted[before:]]

    first, again, other = sent(7), sent(7), sent(8)
    both = min(len(first), len(again))
    assert both >= 2
    assert first[:both] == again[:both]
    assert first[0] != other[0]


def test_a_tag_that_no_user_has_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no user has one of the tags nothing"):
        run_locust("http://127.0.0.1:1", tmp_path / "load", "--tags", "nothing", "--run-time", "1s")

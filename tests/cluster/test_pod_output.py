"""What a pod's own output carries: lines of files that grow, told once each by the command that every pod runs."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from cluster.manifests.pod_output import SILENT_POLLS, Source, wrapped
from serving.logs import JsonLines

RANK = "worker-0561-01000000-5877.err"
Start = Callable[..., IO[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Begins to follow; gives what is told."""
    running: list[subprocess.Popen[str]] = []

    def begin(*options: str) -> IO[str]:
        command = [sys.executable, "-m", "cluster.manifests.pod_output", str(tmp_path / "logs"), *options]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert running[-1].stdout is not None
        return running[-1].stdout

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


def add(file: Path, text: str) -> None:
    with file.open("a") as stream:
        stream.write(text)


def test_the_command_and_the_ranks_are_told_as_they_write_and_rays_own_daemons_are_not(
    logs: Path, start: Start
) -> None:
    add(logs / "raylet.out", "a raylet's line\n")
    add(logs / RANK, ":job_id:01000000\n:actor_name:RayTrainWorker\nrank 0 loads\nrank 0 is ")
    told = start()
    assert told.readline() == "rank 0 loads\n"
    add(logs / "job-driver-raysubmit_1.log", "the command serves\n")
    assert told.readline() == "the command serves\n"
    add(logs / RANK, "ready\n")
    assert told.readline() == "rank 0 is ready\n"


def test_a_session_that_begins_later_is_found(tmp_path: Path, start: Start) -> None:
    told = start()
    (tmp_path / "session").mkdir()
    (tmp_path / "logs").symlink_to(tmp_path / "session")
    add(tmp_path / "session" / RANK, "late\n")
    assert told.readline() == "late\n"


def test_a_file_that_is_moved_away_is_told_to_its_end_and_begun_anew(logs: Path, start: Start) -> None:
    add(logs / RANK, "one\n")
    told = start()
    assert told.readline() == "one\n"
    add(logs / RANK, "two\n")
    (logs / RANK).rename(logs / f"{RANK}.1")
    add(logs / RANK, "three\n")
    assert [told.readline(), told.readline()] == ["two\n", "three\n"]


def test_a_file_that_was_silent_for_long_is_closed_and_goes_on_where_it_was(logs: Path) -> None:
    add(logs / RANK, "one\nha")
    source = Source(logs / RANK)
    assert list(source.lines()) == ["one"]
    for _ in range(SILENT_POLLS):
        assert list(source.lines()) == []
    assert source._file is None
    add(logs / RANK, "lf\n")
    assert list(source.lines()) == ["half"]
    source.close()


def test_where_lines_are_json_every_line_is_and_has_the_same_keys(logs: Path, start: Start) -> None:
    ours = {"time": "t", "level": "INFO", "logger": "serving", "message": "m", "place": "rank", "rank": 0}
    add(logs / RANK, json.dumps(ours | {"request_id": None}) + "\nFatal Python error: Segmentation fault\n{half\n")
    told = start("--json")
    lines = [json.loads(told.readline()) for _ in range(3)]
    assert lines[0] == ours | {"request_id": None}
    assert [line["message"] for line in lines[1:]] == ["Fatal Python error: Segmentation fault", "{half"]
    assert {tuple(line) for line in lines} == {tuple(lines[0])}
    assert lines[1]["place"] == RANK


def test_the_keys_are_those_of_the_servers_lines() -> None:
    record = logging.LogRecord("serving", logging.INFO, "", 0, "m", None, None)
    assert list(json.loads(JsonLines("rank", 0).format(record))) == list(json.loads(wrapped("m", "rank")))

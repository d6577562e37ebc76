"""A job with real ranks that is killed twice on the way, and writes what an undisturbed one does."""

import json
from pathlib import Path

import pytest

from tests.batch.kills import disturbed, undisturbed, write_rows

ROWS = 36


@pytest.mark.slow
def test_a_job_whose_rank_and_then_whose_command_is_killed_writes_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    write_rows(source, ROWS)
    expected = undisturbed(source, tmp_path / "expected.jsonl")
    assert disturbed(source, tmp_path / "out.jsonl", [("rank", 4), ("command", 16)]) == expected
    lines = [json.loads(line) for line in expected.splitlines()]
    assert [number for number, line in enumerate(lines) if "error" in line] == [3]
    assert len(lines) == ROWS

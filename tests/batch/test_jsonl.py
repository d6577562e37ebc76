"""The input as a stream."""

from pathlib import Path

import pytest

from serving.batch.input.jsonl import open_source
from serving.errors import OperatorError


def test_rows_are_numbered_and_empty_lines_are_none(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"one\n\n  \r\ntwo\r\nthree")
    rows = list(open_source(str(path), 100).rows(0, 0))
    assert [(row.number, row.data) for row in rows] == [(0, b"one"), (1, b"two"), (2, b"three")]
    assert rows[-1].end == path.stat().st_size


def test_a_stream_begun_at_a_rows_end_goes_on_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"one\n\ntwo\nthree\n")
    source = open_source(str(path), 100)
    rows = list(source.rows(0, 0))
    assert list(source.rows(1, rows[0].end)) == rows[1:]


def test_of_a_line_that_is_too_long_the_rest_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"x" * 3_000_000 + b"\nshort\n" + b"y" * 50)
    rows = list(open_source(str(path), 10).rows(0, 0))
    assert [(row.data, row.cut) for row in rows] == [(b"x" * 11, True), (b"short", False), (b"y" * 11, True)]
    assert rows[0].end == 3_000_001
    assert rows[-1].end == path.stat().st_size


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_input_without_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with pytest.raises(OperatorError, match="has no rows"):
        open_source(str(path), 100)


@pytest.mark.parametrize("address", ["/nowhere/in.jsonl", "nosuch://bucket/in.jsonl"])
def test_an_input_that_cannot_be_read_is_refused(address: str) -> None:
    with pytest.raises(OperatorError, match="cannot read"):
        open_source(address, 100)


def test_the_files_of_a_folder_are_one_input_in_the_order_of_their_names(tmp_path: Path) -> None:
    files = {"b": b"three\nfour", "a": b"one\ntwo\n", "c": b"", "d": b"five\n", "_SUCCESS": b"x\n", ".a.crc": b"x\n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "below").mkdir()
    source = open_source(str(tmp_path), 100)
    rows = list(source.rows(0, 0))
    assert [(row.number, row.data) for row in rows] == list(enumerate(b"one two three four five".split()))
    assert (rows[-1].end, source.size) == (23, 23)
    for number in range(1, 5):
        assert list(source.rows(number, rows[number - 1].end)) == rows[number:]


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="it is a directory without files"):
        open_source(str(tmp_path), 100)

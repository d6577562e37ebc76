"""Parquet in and out, without a group."""

import json
import os
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from serving.batch.input.parquet import open_parquet
from serving.batch.location import Place, locate
from serving.batch.output.parquet import ANSWERS, GROUP_BYTES, VECTORS, is_output_of, join, require_new_columns
from serving.errors import OperatorError

ROWS = 700


def here(path: Path) -> Place:
    return locate(str(path))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Prompts, chats and a number, in row groups of 100."""
    chats = [[{"role": "user", "content": f"hello {number}"}] for number in range(ROWS)]
    columns: dict[str, Any] = {"n": range(ROWS), "ask": [f"row {n}" for n in range(ROWS)], "chat": chats}
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=100)
    return path


def test_a_column_of_prompts_becomes_rows(table: Path) -> None:
    rows = list(open_parquet(str(table), "ask", '{"max_tokens": 3}').rows(0, 0))
    assert len(rows) == ROWS
    assert json.loads(rows[5].data) == {"inputs": "row 5", "parameters": {"max_tokens": 3}}


def test_the_first_row_is_there_before_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    prompts = [os.urandom(5_000).hex() for _ in range(2_000)]
    pq.write_table(pa.table({"ask": prompts}), path, row_group_size=100, compression="none", use_dictionary=False)
    source, process = open_parquet(str(path), "ask", None), psutil.Process()
    before = process.io_counters().read_chars
    assert json.loads(next(source.rows(0, 0)).data)["inputs"] == prompts[0]
    assert process.io_counters().read_chars - before < path.stat().st_size / 2


def test_a_column_of_chats_becomes_rows(table: Path) -> None:
    row = next(open_parquet(str(table), "chat", None).rows(0, 0))
    assert json.loads(row.data)["inputs"] == [[{"role": "user", "content": "hello 0"}]]


@pytest.mark.parametrize("start", [0, 1, 99, 100, 355, 656, 699, 700])
def test_a_stream_begun_anywhere_goes_on_from_there(table: Path, start: int) -> None:
    source = open_parquet(str(table), "ask", None)
    assert list(source.rows(start, start)) == list(source.rows(0, 0))[start:]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows 0 to 499, none, and 500 to 699, in a file each."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, numbers in (("a", range(500)), ("b", range(0)), ("c", range(500, ROWS))):
        table = pa.table(
            {"n": pa.array(numbers, pa.int64()), "ask": pa.array([f"row {n}" for n in numbers], pa.string())}
        )
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize("start", [0, 499, 500, 501, 699, 700])
def test_the_files_of_a_folder_are_one_input(folder: Path, start: int) -> None:
    rows = list(open_parquet(str(folder), "ask", None).rows(start, start))
    assert [json.loads(row.data)["inputs"] for row in rows] == [f"row {n}" for n in range(start, ROWS)]
    assert [(row.number, row.end) for row in rows] == [(n, n + 1) for n in range(start, ROWS)]


def test_the_files_of_a_folder_become_one_output(folder: Path, tmp_path: Path) -> None:
    answers, output = tmp_path / "lines", tmp_path / "out.parquet"
    answers.write_text('{"error": {"message": "m"}}\n' * ROWS)
    join(open_parquet(str(folder), "ask", None), here(answers), here(output), "a", ANSWERS)
    assert pq.read_table(output)["n"].to_pylist() == list(range(ROWS))


def test_files_of_other_columns_in_a_folder_are_refused(folder: Path) -> None:
    pq.write_table(pa.table({"n": [1]}), folder / "d.parquet")
    with pytest.raises(OperatorError, match=r"d.parquet has other columns than .*a.parquet"):
        open_parquet(str(folder), "ask", None)


@pytest.mark.parametrize(
    ("column", "parameters", "sentence"),
    [
        (None, None, "needs --column; its columns: n, ask, chat"),
        ("asks", None, "has no column asks; its columns: n, ask, chat"),
        ("n", None, "holds int64, not prompts or chats"),
        ("ask", "[]", "--parameters must be a JSON object"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(
    table: Path, column: str | None, parameters: str | None, sentence: str
) -> None:
    with pytest.raises(OperatorError, match=sentence):
        open_parquet(str(table), column, parameters)


def test_a_file_that_is_no_parquet_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_text("no")
    with pytest.raises(OperatorError, match="cannot read"):
        open_parquet(str(tmp_path / "in.parquet"), "ask", None)


def test_a_column_that_the_output_adds_must_not_be_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"ask": ["a"], "error": ["b"]}), tmp_path / "in.parquet")
    with pytest.raises(OperatorError, match="has a column error"):
        require_new_columns(open_parquet(str(tmp_path / "in.parquet"), "ask", None), ANSWERS)


def test_answers_are_joined_to_their_rows_and_the_job_is_known_by_its_output(table: Path, tmp_path: Path) -> None:
    usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    lines = [
        {"outputs": [{"text": f"answer {number}", "finish_reason": "stop", "usage": usage}], "model": "demo"}
        for number in range(ROWS)
    ]
    answers, output = tmp_path / "lines", tmp_path / "out.parquet"
    answers.write_text("\n".join([json.dumps({"error": {"message": "too long"}}), *map(json.dumps, lines[1:])]))
    join(open_parquet(str(table), "ask", None), here(answers), here(output), "a", ANSWERS)
    found = pq.read_table(output)
    assert found.select(["n", "ask", "chat"]).to_pydict() == pq.read_table(table).to_pydict()
    assert found["prediction"].to_pylist() == [None, *(f"answer {number}" for number in range(1, ROWS))]
    assert found["error"].to_pylist() == ["too long", *[None] * (ROWS - 1)]
    assert found["completion_tokens"].to_pylist()[:2] == [None, 1]
    assert is_output_of(here(output), "a")
    assert not is_output_of(here(output), "b")
    assert not is_output_of(here(answers), "a")


@pytest.mark.parametrize(("rows", "characters", "groups"), [(20_000, 1, [8192, 8192, 3616]), (3000, 20_000, None)])
def test_the_outputs_row_groups_are_large_and_bounded(
    tmp_path: Path, rows: int, characters: int, groups: list[int] | None
) -> None:
    path, answers, output = tmp_path / "in.parquet", tmp_path / "lines", tmp_path / "out.parquet"
    pq.write_table(pa.table({"ask": ["x" * characters] * rows}), path)
    answers.write_text('{"error": {"message": "m"}}\n' * rows)
    join(open_parquet(str(path), "ask", None), here(answers), here(output), "a", ANSWERS)
    metadata = pq.read_metadata(output)
    found = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert sum(found) == rows
    assert found == groups if groups else max(found) * characters <= GROUP_BYTES + 256 * characters


def test_a_file_without_rows_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"ask": pa.array([], pa.string())}), path)
    with pytest.raises(OperatorError, match="has no rows"):
        open_parquet(str(path), "ask", None)


def test_an_output_that_cannot_be_written_leaves_nothing(table: Path, tmp_path: Path) -> None:
    answers, folder = tmp_path / "lines", tmp_path / "folder"
    answers.write_text('{"error": {"message": "m"}}\n' * ROWS)
    (folder / "out.parquet").mkdir(parents=True)  # a folder has the output's name
    with pytest.raises(OperatorError, match="cannot write"):
        join(open_parquet(str(table), "ask", None), here(answers), here(folder / "out.parquet"), "a", ANSWERS)
    assert [file.name for file in folder.iterdir()] == ["out.parquet"]


def test_vectors_become_a_list_column(table: Path, tmp_path: Path) -> None:
    vectors = [[number / 7, -1.5] for number in range(ROWS)]
    lines = [
        {"outputs": [{"embedding": vector}], "usage": {"prompt_tokens": 2, "total_tokens": 2}} for vector in vectors
    ]
    answers, output = tmp_path / "lines", tmp_path / "out.parquet"
    answers.write_text("\n".join([json.dumps({"error": {"message": "too long"}}), *map(json.dumps, lines[1:])]))
    join(open_parquet(str(table), "ask", None), here(answers), here(output), "a", VECTORS)
    found = pq.read_table(output)
    assert found["n"].to_pylist() == list(range(ROWS))
    assert found["embedding"].type == pa.list_(pa.float32())
    assert found["embedding"].to_pylist()[0] is None
    assert found["embedding"].to_pylist()[1:] == [pytest.approx(vector) for vector in vectors[1:]]
    assert found["error"].to_pylist()[:2] == ["too long", None]

"""A job with real ranks that is killed twice on the way, and writes what an undisturbed one does."""

import io
import json
from pathlib import Path

import psutil
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
import ray.train
import torch
from transformers import AutoModel, AutoTokenizer

from serving.own_folder import own_folder
from serving.runtime.group.trainer import RUNS
from tests.batch.bucket import open_bucket
from tests.batch.kills import END_TIMEOUT_S, Batch, disturbed, run_to_end, undisturbed, write_rows
from tests.e2e.server import MODEL, eventually

ROWS = 36


@pytest.mark.filterwarnings("ignore:The `parse_obj` method is deprecated")  # Ray's, when it reads what Train has kept
def test_a_job_whose_rank_and_then_whose_command_is_killed_writes_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    write_rows(source, ROWS)
    expected = undisturbed(source, str(tmp_path / "expected.jsonl"))
    assert disturbed(source, str(tmp_path / "out.jsonl"), [("rank", 4), ("command", 16)]) == expected
    lines = [json.loads(line) for line in expected.splitlines()]
    assert [number for number, line in enumerate(lines) if "error" in line] == [3]
    assert len(lines) == ROWS
    result = ray.train.Result.from_path(str(max((own_folder() / RUNS).glob("session_*/gangway-batch"))))
    assert result.metrics is not None
    assert (result.metrics["rows"], result.metrics["failed"]) == (ROWS, 1)


@pytest.mark.quick
def test_vectors_of_rows_are_hugging_faces(tmp_path: Path) -> None:
    texts = [f"{'Count to ten. ' * (number % 5)}What is {number}?" for number in range(20)]
    source, output = tmp_path / "in.jsonl", str(tmp_path / "out.jsonl")
    source.write_text("\n".join(json.dumps({"inputs": text}) for text in texts))
    open_to_all = "--set", "http.host=0.0.0.0", "--set", "security.insecure=true"  # as in a pod; a job listens nowhere
    written = run_to_end(lambda: Batch(source, output, "--task", "embed", "--normalize", *open_to_all))
    model, tokenizer = AutoModel.from_pretrained(MODEL, dtype=torch.float32), AutoTokenizer.from_pretrained(MODEL)
    for text, line in zip(texts, written.splitlines(), strict=True):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        (found,) = (one["embedding"] for one in json.loads(line)["outputs"])
        torch.testing.assert_close(torch.tensor(found), mean / mean.norm(), atol=1e-4, rtol=0)


def test_parquet_goes_from_and_to_an_object_store_though_the_command_is_killed(tmp_path: Path) -> None:
    asked, numbers = [f"What is {number}?" for number in range(ROWS)], list(range(ROWS))
    table = io.BytesIO()
    pq.write_table(pa.table({"number": numbers, "ask": asked}), table)
    with open_bucket({"in.parquet": table.getvalue()}) as bucket:
        output, options = bucket.address("out.parquet"), ("--column", "ask", "--parameters", '{"max_tokens": 8}')
        first = Batch(bucket.address("in.parquet"), output, *options)
        try:
            eventually(lambda: "out.parquet.lines.progress" in bucket.files, END_TIMEOUT_S)
            assert "secret" not in " ".join(psutil.Process(first.process.pid).cmdline())
            first.strike("command")
            first.wait(END_TIMEOUT_S)
        finally:
            first.kill()
        written = run_to_end(lambda: Batch(bucket.address("in.parquet"), output, *options))
        assert sorted(name for name in bucket.files if not name.endswith("/")) == ["in.parquet", "out.parquet"]
    rows = pq.read_table(io.BytesIO(written)).to_pylist()
    assert [(row["number"], row["ask"], row["error"]) for row in rows] == [(n, asked[n], None) for n in numbers]
    assert {row["completion_tokens"] for row in rows} <= set(range(1, 9))

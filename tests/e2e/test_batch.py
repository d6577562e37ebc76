"""A job with real ranks that is killed twice on the way, and writes what an undisturbed one does."""

import json
from pathlib import Path

import pytest
import ray.train
import torch
from transformers import AutoModel, AutoTokenizer

from serving.runtime.group import RUNS
from tests.batch.kills import Batch, disturbed, run_to_end, undisturbed, write_rows
from tests.e2e.server import MODEL

ROWS = 36


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The `parse_obj` method is deprecated")  # Ray's, when it reads what Train has kept
def test_a_job_whose_rank_and_then_whose_command_is_killed_writes_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    write_rows(source, ROWS)
    expected = undisturbed(source, tmp_path / "expected.jsonl")
    assert disturbed(source, tmp_path / "out.jsonl", [("rank", 4), ("command", 16)]) == expected
    lines = [json.loads(line) for line in expected.splitlines()]
    assert [number for number, line in enumerate(lines) if "error" in line] == [3]
    assert len(lines) == ROWS
    result = ray.train.Result.from_path(str(max(RUNS.glob("session_*/gangway-batch"))))
    assert result.metrics is not None
    assert (result.metrics["rows"], result.metrics["failed"]) == (ROWS, 1)


@pytest.mark.slow
def test_vectors_of_rows_are_hugging_faces(tmp_path: Path) -> None:
    texts = [f"{'Count to ten. ' * (number % 5)}What is {number}?" for number in range(20)]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(json.dumps({"inputs": text}) for text in texts))
    run_to_end(lambda: Batch(source, output, "--task", "embed", "--normalize"))
    model, tokenizer = AutoModel.from_pretrained(MODEL, dtype=torch.float32), AutoTokenizer.from_pretrained(MODEL)
    for text, line in zip(texts, output.read_text().splitlines(), strict=True):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        (found,) = (one["embedding"] for one in json.loads(line)["outputs"])
        torch.testing.assert_close(torch.tensor(found), mean / mean.norm(), atol=1e-4, rtol=0)

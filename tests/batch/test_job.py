"""Rows through the real application over a fake group: order, errors, restarts, and going on."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from serving.batch.in_process import application
from serving.batch.input.jsonl import open_source
from serving.batch.job import Ask, Job
from serving.batch.location import locate
from serving.batch.output.writer import open_ledger
from serving.batch.rows import GENERATE, Task
from serving.gateway.service import Service
from serving.gateway.tokenizer import Tokenizer
from tests.fake_engine import FakeGroup, fake_group, until, vector_of
from tests.gateway.conftest import demo_tokenizer, make_config

ROWS = 90
WINDOW = 40


def write_input(path: Path) -> str:
    lines = [
        json.dumps({"inputs": f"row {number}", "parameters": {"max_tokens": 3 + number * 7 % 11}})
        for number in range(ROWS)
    ]
    lines[5] = "{"
    lines[6] = json.dumps({"inputs": "x", "parameters": {"temperatur": 1}})
    lines[7] = json.dumps({"inputs": "word " * 3000})
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    lines[8] = json.dumps({"custom_id": "eight", "method": "POST", "url": "/v1/chat/completions", "body": body})
    path.write_text("\n".join(lines))
    return str(path)


class Bench:
    """A service over a fake group, and jobs on it."""

    def __init__(self, group: FakeGroup, folder: Path, tokenizer: Tokenizer) -> None:
        self.group = group
        self.output = folder / "out.jsonl"
        self.source = open_source(write_input(folder / "in.jsonl"), 1 << 20)
        keys = folder / "keys"
        keys.write_text("sesame\n")  # are for HTTP
        self.config = make_config("http.max_waiting=60", f"security.api_keys_file={keys}")
        self.service = Service(self.config, tokenizer, group)
        self.app = application(self.service, self.config)

    async def run(self, output: Path, ask: Ask | None = None, task: Task = GENERATE, window: int = WINDOW) -> bytes:
        with open_ledger(locate(str(output)), "a", resume=False, overwrite=False) as ledger:
            assert ledger is not None
            rows = self.source.rows(ledger.progress.rows, ledger.progress.offset)
            await Job(rows, ask or self.app.post, ledger, window, task).run()
        return await asyncio.to_thread(output.read_bytes)


@pytest.fixture
async def bench(tmp_path: Path) -> Any:
    with fake_group() as group:
        bench = Bench(group, tmp_path, demo_tokenizer())
        group.start()
        await bench.service.start()
        await until(lambda: bench.service.ready)
        yield bench
        await bench.service.stop()


async def test_every_row_has_its_line_in_order_and_a_wrong_one_its_sentence(bench: Bench) -> None:
    lines = [json.loads(line) for line in (await bench.run(bench.output)).splitlines()]
    assert len(lines) == ROWS
    assert "not valid JSON" in lines[5]["error"]["message"]
    assert "did you mean temperature" in lines[6]["error"]["message"]
    assert lines[7]["error"]["code"] == "context_length_exceeded"
    assert lines[8]["custom_id"] == "eight"
    assert lines[8]["response"]["body"]["usage"]["completion_tokens"] == 4
    for number in range(9, ROWS):
        (output,) = lines[number]["outputs"]
        assert output["usage"]["completion_tokens"] == 3 + number * 7 % 11
        assert output["finish_reason"] == "length"


async def test_a_job_whose_group_breaks_and_one_begun_twice_write_what_an_undisturbed_one_does(
    bench: Bench, tmp_path: Path
) -> None:
    expected = await bench.run(bench.output)
    bench.group.behaviour.pause_s = 0.01
    asked = 0

    async def ask(path: str, body: bytes) -> tuple[int, bytes]:
        nonlocal asked
        asked += 1
        return await bench.app.post(path, body)

    broken = asyncio.create_task(bench.run(tmp_path / "again.jsonl", ask))
    await until(lambda: asked > 60)
    bench.group.kill()
    bench.group.start()
    await until(lambda: asked > 80)
    broken.cancel()
    await asyncio.gather(broken, return_exceptions=True)
    assert not (tmp_path / "again.jsonl").exists()
    bench.group.behaviour.pause_s = 0
    assert await bench.run(tmp_path / "again.jsonl") == expected


async def test_no_more_rows_are_asked_ahead_than_the_window_holds(bench: Bench, tmp_path: Path) -> None:
    under_way, most = 0, 0
    first = asyncio.Event()

    async def ask(path: str, body: bytes) -> tuple[int, bytes]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if b'"row 0"' in body:
            await first.wait()
        answer = await bench.app.post(path, body)
        if most >= 30:
            first.set()
        under_way -= 1
        return answer

    await bench.run(tmp_path / "other.jsonl", ask)
    assert most <= WINDOW


@pytest.mark.parametrize(("window", "after_two"), [(1, 2), (8, 10)])
async def test_a_small_window_is_kept_full(bench: Bench, tmp_path: Path, window: int, after_two: int) -> None:
    bench.source = open_source(_plain(tmp_path / "plain.jsonl"), 1 << 20)
    asked: list[asyncio.Event] = []

    async def ask(path: str, body: bytes) -> tuple[int, bytes]:
        mine = asyncio.Event()
        asked.append(mine)
        await mine.wait()
        return await bench.app.post(path, body)

    job = asyncio.create_task(bench.run(tmp_path / "other.jsonl", ask, window=window))
    await until(lambda: len(asked) == window)
    for answered in asked[:2]:
        answered.set()
    await until(lambda: len(asked) == after_two)
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)


async def test_rows_to_embed_get_their_vectors_and_a_wrong_one_its_sentence(bench: Bench, tmp_path: Path) -> None:
    embedding = Task(embed=True, pooling="last")
    lines = [json.loads(line) for line in (await bench.run(tmp_path / "v.jsonl", task=embedding)).splitlines()]
    assert len(lines) == ROWS
    assert "unknown" in lines[9]["error"]["message"]  # max_tokens is no parameter of a vector
    bench.source = open_source(_plain(tmp_path / "plain.jsonl"), 1 << 20)
    lines = [json.loads(line) for line in (await bench.run(tmp_path / "w.jsonl", task=embedding)).splitlines()]
    for number, line in enumerate(lines):
        tokens = await demo_tokenizer().encode(f"row {number}", param="x")
        assert line["outputs"] == [{"embedding": vector_of(tokens, "last")}]
        assert line["usage"]["prompt_tokens"] == len(tokens)


def _plain(path: Path) -> str:
    path.write_text("\n".join(json.dumps({"inputs": f"row {number}"}) for number in range(20)))
    return str(path)

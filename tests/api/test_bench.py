"""The benchmark against a server whose tokens come at a known pace."""

import io

import pytest
from rich.console import Console

from serving.tools.bench.runner import BenchError, parse_phases, run_bench
from tests.api.conftest import Server


async def test_it_counts_every_token_and_every_step(server: Server) -> None:
    report = await run_bench(server.url, "demo", [1, 4], prompt_tokens=8, output_tokens=10, requests_per_level=4)
    one, four = report.levels
    assert (one.concurrency, one.requests, one.failed) == (1, 4, 0)
    assert one.output_tokens_per_s == pytest.approx(40 / one.seconds)
    assert one.steps == 40
    assert one.phase_ms == pytest.approx({"plan": 1.0, "forward": 10.0})
    assert 10 <= four.steps <= 40
    assert 0 < one.ttft_median_ms <= one.ttft_p99_ms
    assert 0 <= one.itl_median_ms <= one.itl_p99_ms


async def test_its_table_has_a_row_per_level(server: Server) -> None:
    report = await run_bench(server.url, "demo", [1, 2], prompt_tokens=4, output_tokens=3, requests_per_level=2)
    out = io.StringIO()
    Console(file=out, width=200).print(report.table())
    assert "demo: 4 tokens in, 3 out" in out.getvalue()
    assert "forward" in out.getvalue()


async def test_the_same_seed_asks_for_the_same_prompts(server: Server) -> None:
    engine = server.group.engine
    assert engine is not None
    seen = []
    for _ in range(2):
        engine.submitted.clear()
        await run_bench(server.url, "demo", [1], prompt_tokens=4, output_tokens=1, requests_per_level=3)
        seen.append([submit.prompt for submit in engine.submitted])
    assert seen[0] == seen[1]


async def test_a_server_that_refuses_everything_cannot_be_measured(server: Server) -> None:
    with pytest.raises(BenchError, match="status 404"):
        await run_bench(server.url, "other", [1], prompt_tokens=4, output_tokens=3, requests_per_level=2)


async def test_a_server_that_is_not_there_cannot_be_measured() -> None:
    with pytest.raises(BenchError, match="cannot be reached"):
        await run_bench("http://127.0.0.1:9", "demo", [1], prompt_tokens=4, output_tokens=3)
    with pytest.raises(BenchError, match="expected http"):
        await run_bench("ftp://x", "demo", [1], prompt_tokens=4, output_tokens=3)


def test_a_page_without_steps_has_none() -> None:
    assert parse_phases("kv_blocks_used 3.0\n").steps == 0

"""Servers on this machine are asked directly, with a proxy in the environment that must not be told."""

import json
import socket
from collections.abc import Iterator

import pytest

from serving.cli.app import run
from serving.direct import direct
from serving.runtime.command import address
from serving.tools.bench.scaling import run_growth
from serving.tools.drill.prober import Watch
from tests.api.conftest import Server, server
from tests.fake_engine import until

__all__ = ["server"]


@pytest.fixture(autouse=True)
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Every variable that names a proxy names this one, which answers nobody; nobody may have come."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(variable, url)
            monkeypatch.setenv(variable.lower(), url)
        for variable in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(variable, raising=False)
        yield listener
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_starting_server_is_asked_whether_it_is_ready(server: Server) -> None:
    assert address._says_ready(server.url)


def test_status_and_bench_ask_the_server_itself(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--url", server.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "ready"
    sizes = ["--concurrency", "1", "--prompt-tokens", "2", "--output-tokens", "2", "--requests", "1"]
    assert run(["bench", "--url", server.url, "--json", *sizes]) == 0


async def test_the_growth_measurement_asks_the_server_itself(server: Server) -> None:
    assert (await run_growth(server.url, "demo", streams=[1], contexts=[4], queued=1)).streams


async def test_a_drill_watches_the_server_itself(server: Server) -> None:
    async with Watch(server.url, None) as watch:
        await until(lambda: watch.generation > 0)


@pytest.mark.parametrize(
    "url", ["http://localhost:1", "https://[::1]", "http://127.9.9.9", f"http://{socket.gethostname()}"]
)
def test_this_machines_addresses_are_its_own(url: str) -> None:
    assert direct(url)


@pytest.mark.parametrize("url", ["https://gpu.example", "http://192.0.2.250:8000", "nonsense", "http://[::1"])
def test_another_machine_is_asked_as_the_environment_says(url: str) -> None:
    assert not direct(url)

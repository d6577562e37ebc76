from collections.abc import Iterator

import pytest

from tests.e2e.server import MODEL, Server


@pytest.fixture(scope="session", autouse=True)
def model() -> None:
    assert (MODEL / "model.safetensors").is_file(), "fetch the demo model first: make model"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for all tests of a file; the last of them may have stopped it."""
    server = Server()
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.kill()

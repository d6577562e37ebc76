"""The application over a fake group: within this loop, and over real HTTP."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp

from serving.api import entrance
from serving.api.app import create_app
from serving.config import Config
from serving.gateway.service import Service
from serving.gateway.tokenizer import Tokenizer
from tests.fake_engine import FakeGroup, fake_group, until
from tests.gateway.conftest import demo_tokenizer, make_config


@pytest.fixture
def group() -> Iterator[FakeGroup]:
    with fake_group() as group:
        yield group


@asynccontextmanager
async def serving(
    group: FakeGroup, config: Config, tokenizer: Tokenizer | None = None
) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    """A client of a ready application in this event loop, with the demo model's tokenizer unless told otherwise."""
    service = Service(config, tokenizer or demo_tokenizer(), group)
    if group.engine is None:
        group.start()
    await service.start()
    await until(lambda: service.ready)
    transport = httpx.ASGITransport(create_app(service, config))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client, service
    await service.stop()


@pytest.fixture
async def client(group: FakeGroup) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(group, make_config()) as (client, _):
        yield client


@dataclass
class Server:
    """A gateway that listens on a port, and the group behind it."""

    url: str
    group: FakeGroup
    service: Service


@contextmanager
def listening(group: FakeGroup, config: Config) -> Iterator[Server]:
    """uvicorn in a thread of its own, with the service in its event loop."""
    service = Service(config, demo_tokenizer(), group)
    listener = socket.create_server(("127.0.0.1", 0))
    app: ASGIApp = create_app(service, config)
    for around in entrance.middlewares():
        app = around.cls(app, *around.args, **around.kwargs)
    uvicorn_config = uvicorn.Config(app, log_level="warning", lifespan="off")
    server = uvicorn.Server(uvicorn_config)
    ready = threading.Event()
    if group.engine is None:
        group.start()

    async def run() -> None:
        await service.start()
        await until(lambda: service.ready)
        ready.set()
        await server.serve([listener])
        await service.stop()

    thread = threading.Thread(target=asyncio.run, args=(run(),), name="uvicorn")
    thread.start()
    try:
        assert ready.wait(20)
        yield Server(f"http://127.0.0.1:{listener.getsockname()[1]}", group, service)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with fake_group() as group, listening(group, make_config()) as server:
        yield server

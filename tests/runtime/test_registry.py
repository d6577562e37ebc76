"""The registry's actor in a real Ray session."""

import asyncio
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from serving.config import Config, load_config
from serving.messages import Endpoint, RankInfo, Snapshot
from serving.runtime.registry.client import NAMESPACE, RegistryClient, RegistryGroupView, open_registry, registry_name
from serving.runtime.registry.group_state import IllegalTransition

ENDPOINT = Endpoint(address="tcp://10.0.0.1:1", server_public="s", client_public="p", client_secret="c")
RANK = RankInfo(rank=0, node_id="n", ip="10.0.0.1", pid=1, device="cpu")


@pytest.fixture
def config(session: None) -> Config:
    return load_config({"name": f"g{uuid.uuid4().hex[:8]}", "model": {"path": str(Path.cwd())}})


@pytest.fixture
def registry(config: Config) -> Iterator[RegistryClient]:
    client = open_registry(config)
    yield client
    client.remove()


def test_a_registry_is_made_once_and_found_by_its_name(registry: RegistryClient, config: Config) -> None:
    registry.form([RANK], "0a")
    assert open_registry(config).changed().generation == 1
    assert RegistryClient(config.name).changed().generation == 1


def test_events_go_through_the_table_and_illegal_ones_come_back_as_errors(registry: RegistryClient) -> None:
    generation = registry.form([RANK], "0a")
    registry.ready(generation, ENDPOINT)
    assert registry.changed().endpoint == ENDPOINT
    assert registry.fail(generation, "broke") is True
    registry.stop()
    with pytest.raises(IllegalTransition):
        registry.form([RANK], "0a")


async def test_a_long_poll_returns_as_soon_as_something_changes(registry: RegistryClient, config: Config) -> None:
    view = RegistryGroupView(config.name)
    before = await view.changed(-1, 0.0)
    assert before is not None
    waiting = asyncio.create_task(view.changed(before.version, 60.0))
    await asyncio.to_thread(registry.form, [RANK], "0a")
    after = await waiting
    assert after is not None
    assert after.state == "loading"


async def test_a_long_poll_without_news_returns_the_same_version(registry: RegistryClient, config: Config) -> None:
    view = RegistryGroupView(config.name)
    before = await view.changed(-1, 0.0)
    assert before is not None
    assert await view.changed(before.version, 0.05) == before


async def test_a_view_of_no_registry_sees_none_until_there_is_one(config: Config) -> None:
    view = RegistryGroupView(config.name)
    assert await view.changed(-1, 0.0) is None
    registry = open_registry(config)
    try:
        assert await view.changed(-1, 0.0) is not None
    finally:
        registry.remove()


async def test_a_registry_whose_process_dies_starts_empty_and_takes_back_what_rank_0_knows(
    registry: RegistryClient, config: Config
) -> None:
    registry.form([RANK], "0a")
    known = registry.changed()
    actor = ray.get_actor(registry_name(config.name), namespace=NAMESPACE)
    os.kill(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
    view = RegistryGroupView(config.name)
    assert (await _until_seen(view)).generation == 0
    registry.restore(known)
    assert (await _until_seen(view)).generation == 1


async def _until_seen(view: RegistryGroupView) -> Snapshot:
    async with asyncio.timeout(30):
        while True:
            snapshot = await view.changed(-1, 0.0)
            if snapshot is not None:
                return snapshot

"""A hand-over between two commands, of which only the actors' names and the registry are there."""

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from serving.config import Config, load_config
from serving.errors import OperatorError
from serving.messages import RankInfo
from serving.runtime.command.handover import differing_section, require_successor, take_over
from serving.runtime.group.supervisor import supervisor_name
from serving.runtime.registry.client import RegistryClient, actor_exists, open_registry

RANK = RankInfo(rank=0, node_id="n", ip="10.0.0.1", pid=1, device="cpu")


class Settings:
    """Stands for the supervisor of a group of these settings."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def settings(self) -> dict[str, Any]:
        return self._settings


def configured(**sections: Any) -> Config:
    return load_config({"name": f"g{uuid.uuid4().hex[:8]}", "model": {"path": str(Path.cwd())}} | sections)


@pytest.mark.parametrize(
    ("sections", "differing"),
    [
        ({}, None),
        ({"parallel": {"tensor_parallel_size": 4}, "engine": {"max_running": 8}}, None),
        ({"http": {"port": 1}}, "http"),
        ({"security": {"insecure": True}, "model": {"path": "/", "dtype": "float32"}}, "model"),
    ],
)
def test_a_group_takes_over_only_with_what_the_gateway_goes_on_with(
    sections: dict[str, Any], differing: str | None
) -> None:
    assert differing_section(configured().model_dump(mode="json"), configured(**sections)) == differing


@pytest.fixture
def registry(session: None) -> Iterator[RegistryClient]:
    client = open_registry(configured())
    yield client
    client.remove()


def supervisor(config: Config) -> Any:
    actor = ray.remote(Settings).options(name=supervisor_name(config.name), num_cpus=0)
    return actor.remote(config.model_dump(mode="json"))


def test_a_group_of_a_serve_application_is_not_taken_over(registry: RegistryClient) -> None:
    config = configured(name=registry.group)
    with pytest.raises(OperatorError, match="belongs to a Serve application"):
        require_successor(supervisor(config), config)


def test_the_section_that_stands_in_the_way_is_named(registry: RegistryClient) -> None:
    registry.own("first", brought_serve=True)
    running = supervisor(configured(name=registry.group, http={"port": 1}))
    with pytest.raises(OperatorError, match="other settings in http"):
        require_successor(running, configured(name=registry.group))


def test_what_is_taken_over_keeps_its_past_and_its_old_supervisor_is_gone(registry: RegistryClient) -> None:
    registry.own("first", brought_serve=True)
    registry.form([RANK], "0a")
    config = configured(name=registry.group)
    running = supervisor(config)
    require_successor(running, config)
    given_up = threading.Event()
    given_up.set()
    left = take_over(config.name, "second", given_up)
    assert (left.owner, left.generation, left.state, left.brought_serve) == ("second", 1, "restarting", True)
    assert not actor_exists(supervisor_name(config.name))


def test_a_group_that_ends_is_not_taken_over(registry: RegistryClient) -> None:
    registry.own("first", brought_serve=True)
    registry.drain()
    with pytest.raises(OperatorError, match="is ending"):
        take_over(registry.group, "second", threading.Event())
    assert registry.changed().owner == "first"

"""The caretaker's patience, and its actor in a real Ray session."""

import uuid
from pathlib import Path
from typing import Any

import pytest
import ray

from serving.config import Config, load_config
from serving.runtime.absence import Absence
from serving.runtime.command.orphan_cleaner import caretaker_name, dismiss_caretaker, post_caretaker
from serving.runtime.registry.client import actor_exists, open_registry, registry_name
from tests.e2e.server import eventually


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """Stands for a supervisor."""


def test_only_what_is_missing_without_a_break_for_longer_than_the_patience_is_gone() -> None:
    clock = Clock()
    absence = Absence(20.0, clock)
    looks = [(0, True), (100, False), (119, False), (119.5, True), (120, False), (139, False), (140, False)]
    seen = []
    for clock.now, present in looks:
        seen.append(absence.outlasts(present))
    assert seen == [False] * 6 + [True]


@pytest.fixture
def config(session: None) -> Config:
    return load_config({"name": f"g{uuid.uuid4().hex[:8]}", "model": {"path": str(Path.cwd())}})


def watched(name: str) -> Any:
    return ray.remote(Watched).options(name=name, num_cpus=0).remote()


def test_a_group_without_a_supervisor_is_cleared_away_and_the_caretaker_with_it(config: Config) -> None:
    open_registry(config)
    supervisor = watched("watched-1")
    post_caretaker(config.name, "watched-1", brought_serve=True, patience_s=0.0)
    ray.get(ray.get_actor(caretaker_name(config.name)).__ray_ready__.remote())
    assert actor_exists(registry_name(config.name))
    ray.kill(supervisor)
    eventually(lambda: not actor_exists(registry_name(config.name)), 60)
    eventually(lambda: not actor_exists(caretaker_name(config.name)), 60)


def test_a_caretaker_that_is_dismissed_can_be_followed_by_another(config: Config) -> None:
    kept = watched("watched-2")
    ids = set()
    for _ in range(3):
        post_caretaker(config.name, "watched-2", brought_serve=False)
        actor = ray.get_actor(caretaker_name(config.name))
        ray.get(actor.__ray_ready__.remote())
        ids.add(actor._actor_id.hex())
        dismiss_caretaker(config.name)
    assert len(ids) == 3
    dismiss_caretaker(config.name)
    ray.kill(kept)

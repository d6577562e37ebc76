"""The supervisor's actor in a real Ray session."""

import uuid
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayActorError

from serving.config import load_config
from serving.runtime.error_messages import cause_of_death
from serving.runtime.group.supervisor import start_supervisor


def test_settings_that_the_supervisor_refuses_are_told_in_one_sentence(session: None) -> None:
    config = load_config({"name": f"g{uuid.uuid4().hex[:8]}", "model": {"path": str(Path.cwd())}})
    exposed = config.model_copy(update={"http": config.http.model_copy(update={"host": "10.0.0.1"})})
    supervisor = start_supervisor(exposed, batch=True)
    with pytest.raises(RayActorError) as refused:
        ray.get(supervisor.outcome.remote())
    told = cause_of_death(refused.value)
    assert told.startswith("ConfigError: configuration: http.host 10.0.0.1 is reachable from outside")
    assert "\n" not in told

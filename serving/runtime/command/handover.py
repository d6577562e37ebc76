"""How a command takes a running group over from the command that owns it, without dropping a request.

The registry names the owner. The new command writes its own name there; the old one sees that, ends its group and
leaves everything else. The application, its journal and the registry stay as they are: the new command's ranks are the
next generation, to which the gateway hands every request as it does after a break.
"""

import threading
import time
from typing import Any

import ray
from ray.exceptions import RayActorError

from serving.config import Config
from serving.errors import OperatorError
from serving.messages import Snapshot
from serving.runtime.group.supervisor import find_supervisor, supervisor_name
from serving.runtime.registry.client import RegistryClient, actor_exists
from serving.runtime.registry.group_state import IllegalTransition

KEPT = ("model", "http", "security")
"""Sections that the gateway was started with, and goes on with."""
HANDOVER_S = 30.0
"""How long the old command may take to end its group before this is done for it."""
POLL_S = 0.1


def differing_section(running: dict[str, Any], config: Config) -> str | None:
    """The first section of `config` that the gateway of the `running` group could not go on with; None if it can."""
    wanted = config.model_dump(mode="json")
    return next((section for section in KEPT if running.get(section) != wanted[section]), None)


def require_successor(running: Any, config: Config) -> None:
    """Raise `OperatorError` when a group of this configuration cannot take over from the supervisor `running`."""
    name = config.name
    if RegistryClient(name).changed().owner is None:
        raise OperatorError(f"the group named {name} belongs to a Serve application, deploy that again instead")
    section = differing_section(ray.get(running.settings.remote()), config)
    if section is not None:
        raise OperatorError(
            f"the group named {name} runs with other settings in {section}, which stay with its gateway: "
            f"--replace needs the same ones"
        )


def take_over(group: str, owner: str, given_up: threading.Event) -> Snapshot:
    """Make `owner` the group's owner and wait until the group of the last one has ended; returns what it has left.

    Sooner when `given_up` is set: the owner then has to clear up. Raises `OperatorError` when the group has
    ended meanwhile.
    """
    registry = RegistryClient(group)
    try:
        registry.hand_over(owner)
    except (IllegalTransition, ValueError, RayActorError) as error:
        raise OperatorError(f"the group named {group} is ending: start again without --replace") from error
    deadline = time.monotonic() + HANDOVER_S
    while actor_exists(supervisor_name(group)) and time.monotonic() < deadline and not given_up.is_set():
        given_up.wait(POLL_S)
    if (left := find_supervisor(group)) is not None:
        ray.kill(left, no_restart=True)
    return registry.changed()

"""The process that runs the group's Train run: an actor with a name, so that a group is started once.

`gangway serve` owns it, and it ends with that command; it watches over the gateway (see `gateway_watch`). Under
`serve run` it is detached: it watches the Serve application that asked for it, and ends the group, the registry and
itself when that application is gone.
"""

import logging
import threading
from typing import Any

import ray
from ray.exceptions import RayActorError

from serving.config import Config, load_config
from serving.errors import GroupFailed
from serving.logs import set_up
from serving.messages import Purpose
from serving.runtime.gateway_watch import GatewayWatch
from serving.runtime.registry.client import NAMESPACE, RegistryClient, actor_exists, open_registry

APPLICATION_CHECK_S = 2.0

logger = logging.getLogger(__name__)


def supervisor_name(group: str) -> str:
    """The supervisor's name in Ray."""
    return f"{group}-supervisor"


class Supervisor:
    """The actor. It runs the group from its construction on, also after Ray has restarted it."""

    def __init__(self, settings: dict[str, Any], purpose: Purpose, application: str | None) -> None:
        """`application`: the one that has asked for the group, if that is its purpose."""
        self._settings = settings
        self._config = load_config(settings)
        set_up("supervisor", as_json=self._config.observe.log_json)
        self._failure: str | None = None
        self._run = threading.Thread(target=self._run_group, args=(purpose,), daemon=True)
        self._run.start()
        if purpose == "serve":
            threading.Thread(target=GatewayWatch(self._config).run, daemon=True).start()
        if application is not None:
            threading.Thread(target=self._end_with, args=(application,), daemon=True).start()

    def settings(self) -> dict[str, Any]:
        """The configuration that this group runs."""
        return self._settings

    def outcome(self) -> str | None:
        """Wait for the group's end; returns the reason if it failed for good."""
        self._run.join()
        return self._failure

    def _run_group(self, purpose: Purpose) -> None:
        from serving.runtime.group.trainer import run_group  # imports torch; the actor answers meanwhile

        try:
            run_group(self._config, purpose)
        except GroupFailed as error:
            self._failure = str(error)
            logger.warning("the group has failed for good: %s", error)

    def _end_with(self, application: str) -> None:
        """Wait until Serve, asked again and again, no longer knows the application; then end everything."""
        watch = threading.Event()
        while _serve_knows(application):
            watch.wait(APPLICATION_CHECK_S)
        registry = open_registry(self._config)
        registry.stop()
        self._run.join()
        registry.remove()
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def _serve_knows(application: str) -> bool:
    """Whether the application exists; also while Serve's controller is between two lives and cannot say."""
    from ray import serve  # takes a second, and the group of a command does not need it here
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        return application in serve.status().applications
    except RayActorError:
        return actor_exists(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)


def start_supervisor(config: Config, *, application: str | None = None, batch: bool = False) -> Any:
    """Start the group of this configuration; returns the supervisor's handle.

    It belongs to this process and its node, or, when an `application` is named, to that; `batch`: it serves nobody.
    Raises `ValueError` when one of that name lives already.
    """
    open_registry(config)
    purpose: Purpose = "batch" if batch else "serve" if application is None else "application"
    options: dict[str, Any] = {"name": supervisor_name(config.name), "namespace": NAMESPACE, "num_cpus": 0}
    if application is None:
        options["label_selector"] = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    else:
        options |= {"lifetime": "detached", "max_restarts": -1}
    actor = ray.remote(Supervisor).options(max_concurrency=4, **options)
    return actor.remote(config.model_dump(mode="json"), purpose, application)


def find_supervisor(group: str) -> Any | None:
    """The living supervisor of the group, or None."""
    try:
        return ray.get_actor(supervisor_name(group), namespace=NAMESPACE)
    except ValueError:
        return None


def ensure_supervisor(config: Config, application: str) -> None:
    """See that a group of this configuration runs for `application`.

    One that runs with another configuration, or has ended, is replaced: the application was deployed again.
    """
    running = find_supervisor(config.name)
    if running is not None:
        same = ray.get(running.settings.remote()) == config.model_dump(mode="json")
        if same and RegistryClient(config.name).changed().state not in {"failed", "stopped"}:
            return
        ray.kill(running, no_restart=True)
        RegistryClient(config.name).remove()
    start_supervisor(config, application=application)

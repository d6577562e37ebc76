"""The gateway as a Ray Serve deployment, and how it comes to stand in front of the group.

One replica, a process of its own on rank 0's node, holds the Starlette application. Serve's proxy hands it requests
and restarts it when it dies. It asks for no CPU, so that the ranks can have them all.
"""

import gc
import time
from typing import Any

import ray
from ray import serve
from ray._common.network_utils import get_localhost_ip
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus
from starlette.types import ASGIApp

from serving.api.app import create_app
from serving.config import Config, load_config
from serving.gateway.service import Service
from serving.gateway.tokenizer import Tokenizer
from serving.logs import set_up
from serving.runtime.environment import behind_own_proxy, requests_at_once
from serving.runtime.registry import RegistryGroupView
from serving.runtime.supervisor import ensure_supervisor

GATEWAY_NODE_PATIENCE_S = 5.0
"""How long a gateway that does not run may take to come back by itself before it is deployed anew, on rank 0's node."""


class Gateway:
    """The replica. `supervised`: the group is started from here when there is none (`serve run`)."""

    def __init__(self, settings: dict[str, Any], supervised: bool) -> None:
        self._config = load_config(settings)
        set_up("gateway", as_json=self._config.observe.log_json)
        if supervised:
            ensure_supervisor(self._config, serve.get_replica_context().app_name)
        tokenizer = Tokenizer(self._config.model)
        self._host = _serves_own_host() if supervised else self._config.http.host
        self._service = Service(self._config, tokenizer, RegistryGroupView(self._config.name))

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve in the replica's event loop, once, before the first request."""
        await self._service.start()
        app = create_app(self._service, self._config, ray.util.get_node_ip_address(), self._host)
        gc.collect()
        gc.freeze()  # looking through all that was imported, for nothing, would stop the loop for 0.3 s now and then
        return app

    async def __del__(self) -> None:
        """Called by Serve in the same loop when the replica is told to stop and its requests have ended."""
        await self._service.stop()

    async def in_flight(self) -> int:
        """Requests accepted and not yet answered to their end."""
        return len(self._service.journal)


def build_application(config: Config, *, node_id: str | None, supervised: bool) -> serve.Application:
    """The Serve application of this configuration, on the node `node_id` if one is given."""
    options: dict[str, Any] = {"num_cpus": 0}
    if node_id is not None:
        options["label_selector"] = {"ray.io/node-id": node_id}
    deployment = serve.deployment(
        serve.ingress()(Gateway),
        name="gateway",
        num_replicas=1,
        max_ongoing_requests=requests_at_once(config),
        ray_actor_options=options,
        graceful_shutdown_timeout_s=config.fault.drain_timeout_s,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=5,
        health_check_timeout_s=10,
        logging_config={"enable_access_log": False},
    )
    return deployment.bind(config.model_dump(mode="json"), supervised)


def ensure_application(config: Config, node_id: str) -> None:
    """Deploy the gateway on `node_id` and wait for it, unless one of an earlier generation lives.

    One that lives stays wherever it is, as it holds its clients' connections. One whose node has gone cannot come back
    there, and is deployed anew.
    """
    if _lives(config.name):
        return
    start_serve(config)
    application = build_application(config, node_id=node_id, supervised=False)
    serve.run(application, name=config.name, route_prefix="/")


def start_serve(config: Config) -> None:
    """Start Serve with this configuration's address, if it does not run yet; its address cannot change later.

    Behind our own HAProxy, which listens on that address itself, Serve's is loopback, and so is a replica's: what it
    listens on is for the proxy alone.
    """
    host = get_localhost_ip() if behind_own_proxy() else config.http.host
    serve.start(
        proxy_location="EveryNode",
        http_options={"host": host, "port": config.http.port},
        logging_config={"enable_access_log": False},
    )


def _serves_own_host() -> str:
    """Where Serve listens, whatever the configuration says: under `serve run` it was started by somebody else."""
    return str(_get_global_client().http_config.host)


def application_status(name: str) -> ApplicationStatus | None:
    """Serve's status of the application; None when there is none, or no Serve."""
    found = serve.status().applications.get(name)
    return found.status if found else None


def _lives(name: str) -> bool:
    deadline = time.monotonic() + GATEWAY_NODE_PATIENCE_S
    while (status := application_status(name)) is not None and time.monotonic() < deadline:
        if status == ApplicationStatus.RUNNING:
            return True
        time.sleep(0.2)
    return False

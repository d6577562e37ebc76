"""The gateway as a Ray Serve deployment, and how it comes to stand in front of the group.

One replica, a process of its own on the head's node, holds the Starlette application: the group does not outlive that
node, and any other may be lost without a client noticing more than a pause. Serve's proxy hands it requests and
restarts it when it dies. It asks for no CPU, so that the ranks can have them all.
"""

import gc
from typing import Any

import ray
from ray import serve
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray._common.network_utils import get_localhost_ip
from ray.serve.schema import ApplicationStatus
from starlette.types import ASGIApp

from serving.api.app import create_app
from serving.config import Config, load_config
from serving.gateway.service import Service
from serving.gateway.tokenizer import Tokenizer
from serving.logs import set_up
from serving.presence import GATEWAY
from serving.runtime.ray_cluster.environment import behind_own_proxy, requests_at_once
from serving.runtime.registry.client import RegistryGroupView

ON_THE_HEAD = {HEAD_NODE_RESOURCE_NAME: 0.001}
"""What only the head's node has, as Serve's own controller asks for it: a node's id would not outlive that node."""


class Gateway:
    """The replica."""

    def __init__(self, settings: dict[str, Any], host: str | None = None) -> None:
        """`host`: where Serve listens, if not where the configuration says."""
        self._config = load_config(settings)
        set_up("gateway", as_json=self._config.observe.log_json)
        tokenizer = Tokenizer(self._config.model)
        self._host = host or self._config.http.host
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

    async def check_health(self) -> None:
        """Called by Serve in the same loop now and then: one whose loop does not turn is not well, and is replaced."""

    async def in_flight(self) -> int:
        """Requests accepted and not yet answered to their end."""
        return len(self._service.journal)


def build_application(
    config: Config, *, version: str | None = None, gateway: type[Gateway] = Gateway
) -> serve.Application:
    """The Serve application of this configuration, for the head's node.

    Equal configurations of one `version` are the same to Serve; without one they are not.
    """
    deployment = serve.deployment(
        serve.ingress()(gateway),
        name=GATEWAY,
        num_replicas=1,
        max_ongoing_requests=requests_at_once(config),
        ray_actor_options={"num_cpus": 0, "resources": ON_THE_HEAD},
        graceful_shutdown_timeout_s=config.fault.drain_timeout_s,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=5,
        health_check_timeout_s=10,
        logging_config={"enable_access_log": False},
    )
    if version is not None:
        deployment = deployment.options(version=version, _internal=True)
    return deployment.bind(config.model_dump(mode="json"))


def deploy(config: Config, follows: float | None = None) -> None:
    """Deploy the gateway and wait until it runs. Raises `RuntimeError` when it does not start.

    `follows`: when the one before it was deployed, if there was one. Serve takes two that follow the same for one.
    """
    start_serve(config)
    application = build_application(config, version=f"after-{follows}")
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


def application_status(name: str) -> ApplicationStatus | None:
    """Serve's status of the application; None when there is none, or no Serve."""
    found = serve.status().applications.get(name)
    return found.status if found else None

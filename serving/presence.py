"""Whether there is a gateway to answer, by what Ray Serve knows of its application.

Serve's status of the application does not say it: that stays RUNNING while Serve starts a replica over and over, even
where none can ever run. So its details are read. What is decided is plain; the ways to ask are at the end.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal

GATEWAY = "gateway"
"""Name of the one deployment in an application of ours."""

NODE_LABEL = "ray.io/node-id"
"""Ray's own label of a node, by which something can be kept on it."""

Seen = tuple[dict[str, Any], set[str]]
"""Serve's details (`ServeInstanceDetails`), and the ids of the nodes that live."""

ASK_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Presence:
    """How it stands with the gateway of an application."""

    state: Literal["alive", "starting", "lost"]
    """alive: a replica that Serve finds healthy runs on a living node. starting: Serve is working on it. lost: Serve
    will never have one by itself: there is no application, Serve has given up, or starts it on a node that is gone."""

    deployed_at: float | None = None
    """When the application was last deployed, in seconds since 1970."""


def presence(details: Mapping[str, Any], application: str, living: Set[str]) -> Presence:
    """By Serve's `details` (`ServeInstanceDetails`) and the ids of the nodes that live."""
    found = details.get("applications", {}).get(application)
    if found is None:
        return Presence(state="lost")
    gateway = found["deployments"].get(GATEWAY, {})
    deployed_at = found["last_deployed_time_s"]
    if found["status"] == "DELETING":  # soon there is no application
        return Presence(state="starting", deployed_at=deployed_at)
    if any(_runs(replica, living) for replica in gateway.get("replicas", [])):
        return Presence(state="alive", deployed_at=deployed_at)
    given_up = found["status"] == "DEPLOY_FAILED"
    lost = given_up or _node_is_gone(gateway, living)
    return Presence(state="lost" if lost else "starting", deployed_at=deployed_at)


def lacks_gateway(details: Mapping[str, Any], path: str, living: Set[str]) -> bool:
    """Whether `path` belongs to an application of ours that has no gateway now, not even one on its way out.

    Other people's may wait for a replica on purpose, having none while nobody asks.
    """
    routed = {
        str(found["route_prefix"]): name
        for name, found in details.get("applications", {}).items()
        if found["route_prefix"] is not None and _lies_below(path, found["route_prefix"])
    }
    if not routed:
        return False
    name = routed[max(routed, key=len)]
    deployments = details["applications"][name]["deployments"]
    ours = set(deployments) == {GATEWAY}
    return ours and not any(_may_answer(replica, living) for replica in deployments[GATEWAY].get("replicas", []))


def _lies_below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")


def _runs(replica: Mapping[str, Any], living: Set[str]) -> bool:
    return replica["state"] == "RUNNING" and replica["node_id"] in living


def _may_answer(replica: Mapping[str, Any], living: Set[str]) -> bool:
    """Whether it may hold requests that it will answer.

    So does one that drains (STOPPING), or that Serve's controller finds again after its own restart (RECOVERING), when
    its node may not be known yet.
    """
    return replica["state"] not in ("STARTING", "STOPPED") and replica["node_id"] in {None, *living}


def _node_is_gone(gateway: Mapping[str, Any], living: Set[str]) -> bool:
    """Whether it is kept on a node that no longer lives, as gateways once were on that of rank 0."""
    options = gateway.get("deployment_config", {}).get("ray_actor_options") or {}
    node = (options.get("label_selector") or {}).get(NODE_LABEL)
    return node is not None and node not in living


def ask_serve() -> Seen:
    """Serve's details, empty where it does not run, and the nodes that live.

    Raises `RayError` when Serve's controller does not answer in time.
    """
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    if not ray.is_initialized():  # or Ray would start a cluster to look at
        return {}, set()
    living = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    try:
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return {}, living
    return ray.get(controller.get_serve_instance_details.remote(), timeout=ASK_TIMEOUT_S), living

"""Environment variables of the pods, as Kubernetes writes them. Pure. KubeRay adds Ray's address and token itself."""

import math
from typing import Any

from cluster.config.spec import ClusterSpec

Variable = dict[str, Any]

NODE_LOSS = {
    "RAY_health_check_failure_threshold": "5",
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
}
"""A node that is cut off is declared dead after about 6 s; by Ray's own defaults it takes half a minute or more."""

AT_ONCE = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
"""A Ray node that is told to end would wait up to 30 s for Serve to move replicas elsewhere: there is nowhere, and what
has to drain has drained before it is told.
"""

FAIR = {"RAY_worker_niceness": "0"}
"""Ray starts its workers, and so the ranks, at nice 15. In a pod that would only put them behind the pod's own other
processes, which need little; how pods share a node is for their requests of CPU to say.
"""

ENTRANCE = "serving.api.entrance.middlewares"
"""What Serve, which every pod may run a proxy of, calls for the middleware around an application."""

STOP_MARGIN_S = 15
"""For taking down the group after it has drained."""


def head_environment(spec: ClusterSpec) -> list[Variable]:
    """The head's: besides what all have, a job that is told to stop gets the time it needs to drain (Ray gives 3 s)."""
    drain = math.ceil(spec.serving.fault.drain_timeout_s) + STOP_MARGIN_S
    return _written(spec, NODE_LOSS | AT_ONCE | FAIR | _bodies(spec) | {"RAY_JOB_STOP_WAIT_TIME_S": str(drain)})


def worker_environment(spec: ClusterSpec) -> list[Variable]:
    """A pod's with ranks."""
    return _written(spec, NODE_LOSS | AT_ONCE | FAIR | _bodies(spec) | _collectives(spec))


def _bodies(spec: ClusterSpec) -> dict[str, str]:
    """Serve bounds no body by itself, and has read it before our application is asked."""
    return {
        "GANGWAY_MAX_BODY_BYTES": str(spec.serving.http.max_body_bytes),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": ENTRANCE,
    }


def _collectives(spec: ClusterSpec) -> dict[str, str]:
    """What NCCL and gloo obey. gloo takes the name of an interface only, not NCCL's `^` and `=`."""
    network = spec.network
    found = {
        "GLOO_SOCKET_IFNAME": network.interface if network.interface and network.interface[0] not in "^=" else None,
        "NCCL_SOCKET_IFNAME": network.interface,
    }
    if spec.nodes.gpus_per_node:
        found["NCCL_DEBUG"] = network.nccl_debug
        found["NCCL_IB_HCA"] = network.ib_hca
        found["NCCL_IB_GID_INDEX"] = None if network.ib_gid_index is None else str(network.ib_gid_index)
    return {name: value for name, value in found.items() if value is not None}


def _written(spec: ClusterSpec, ours: dict[str, str]) -> list[Variable]:
    """By name, so that the order never changes. What the user has set stays."""
    plain: dict[str, Variable] = {name: {"name": name, "value": value} for name, value in (ours | spec.env).items()}
    secret: dict[str, Variable] = {
        name: {"name": name, "valueFrom": {"secretKeyRef": {"name": source.secret, "key": source.key}}}
        for name, source in spec.secret_env.items()
    }
    return [variable for _, variable in sorted((plain | secret).items())]

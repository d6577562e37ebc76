"""Where a server that listens can be asked, seen from the command that started it."""

import httpx
import ray
from ray._common.constants import HEAD_NODE_RESOURCE_NAME

from serving.config import HttpConfig, is_loopback
from serving.errors import OperatorError
from serving.runtime.network import places_to_ask
from serving.runtime.ray_cluster.haproxy_wrapper import at

_PATIENCE_S = 2.0


def url_that_is_ready(http: HttpConfig) -> str | None:
    """The first address at which /readyz says yes over real HTTP; None when there is none."""
    places = places_to_ask(http.host, [ray.util.get_node_ip_address(), *head_addresses()])
    return next(filter(_says_ready, (f"http://{at(place, http.port)}" for place in places)), None)


def head_addresses() -> list[str]:
    """The address of the cluster's head node, where Serve listens, as the gateway is there."""
    nodes = (node for node in ray.nodes() if node["Alive"])
    return [str(node["NodeManagerAddress"]) for node in nodes if HEAD_NODE_RESOURCE_NAME in node["Resources"]]


def require_reach(http: HttpConfig) -> None:
    """Raise `OperatorError` when nobody could ask from here: Serve would listen on the loopback of another node."""
    if is_loopback(http.host) and ray.util.get_node_ip_address() not in (heads := head_addresses()):
        raise OperatorError(
            f"http.host {http.host} is reached on the cluster's head node alone, {' '.join(heads)}: "
            "run the command there, or set http.host to an address of that node"
        )


def _says_ready(url: str) -> bool:
    """Asked directly, whatever proxy the environment names."""
    try:
        return httpx.get(f"{url}/readyz", timeout=_PATIENCE_S, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False

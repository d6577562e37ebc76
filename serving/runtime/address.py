"""Where a server that listens can be asked, seen from the command that started it."""

from collections.abc import Sequence

import httpx
import ray

from serving.config import HttpConfig
from serving.messages import RankInfo
from serving.runtime.haproxy import at
from serving.runtime.network import places_to_ask

_HEAD = "node:__internal_head__"
"""What Ray gives to the head node alone."""
_PATIENCE_S = 2.0


def url_that_is_ready(http: HttpConfig, ranks: Sequence[RankInfo]) -> str | None:
    """The first address at which /readyz says yes over real HTTP; None when there is none."""
    places = places_to_ask(http.host, _nodes(ranks))
    return next(filter(_says_ready, (f"http://{at(place, http.port)}" for place in places)), None)


def _nodes(ranks: Sequence[RankInfo]) -> list[str]:
    """This node's address, that of rank 0, and the head's, where the gateway is: Serve listens on some of them."""
    heads = [node["NodeManagerAddress"] for node in ray.nodes() if _HEAD in node["Resources"]]
    return [ray.util.get_node_ip_address(), *(rank.ip for rank in ranks[:1]), *heads]


def _says_ready(url: str) -> bool:
    """Asked directly, whatever proxy the environment names."""
    try:
        return httpx.get(f"{url}/readyz", timeout=_PATIENCE_S, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False

"""Where a server can be asked, on a cluster of which this process may be on any node."""

import pytest
import ray

from serving.config import HttpConfig
from serving.errors import OperatorError
from serving.runtime.command.address import require_reach


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process on 10.0.0.2, the head on 10.0.0.1, and one that was head before and is gone."""
    head = {"node:__internal_head__": 1.0}
    nodes = [
        {"Alive": True, "NodeManagerAddress": "10.0.0.1", "Resources": head},
        {"Alive": True, "NodeManagerAddress": "10.0.0.2", "Resources": {"CPU": 1.0}},
        {"Alive": False, "NodeManagerAddress": "10.0.0.2", "Resources": head},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.2")


def test_the_heads_loopback_is_refused_from_another_node(elsewhere: None) -> None:
    with pytest.raises(OperatorError, match=r"head node alone, 10\.0\.0\.1: run the command there"):
        require_reach(HttpConfig())
    require_reach(HttpConfig(host="10.0.0.1"))


def test_on_the_head_loopback_will_do(elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.1")
    require_reach(HttpConfig())

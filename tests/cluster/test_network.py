"""Who reaches the gang."""

from typing import Any

import pytest

from cluster.config.rules import warnings
from cluster.config.spec import ClusterSpec
from cluster.errors import SpecError
from cluster.manifests.render import render
from tests.cluster.conftest import MakeSpec
from tests.cluster.test_manifest import EVERYTHING, check_against_kubernetes, pod_templates

TCP = {"protocol": "TCP"}
GANG = {"podSelector": {"matchLabels": {"app.kubernetes.io/instance": "gang"}}}


def document(spec: ClusterSpec, kind: str) -> dict[str, Any]:
    (found,) = (one for one in render(spec) if one["kind"] == kind)
    return found


def test_requests_go_to_the_head_which_always_has_a_proxy(make: MakeSpec) -> None:
    spec = make(serving__http={"port": 9000})
    service = document(spec, "Service")
    head, worker = pod_templates(render(spec)[-1])
    selector = service["spec"]["selector"].items()
    assert selector <= head["metadata"]["labels"].items()
    assert not selector <= worker["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["port"] == 9000
    assert {"containerPort": 9000, "name": "http"} in head["spec"]["containers"][0]["ports"]


def test_pods_of_the_gang_reach_each_other_on_every_port_both_ways(make: MakeSpec) -> None:
    policy = document(make(), "NetworkPolicy")["spec"]
    assert {"from": [GANG]} in policy["ingress"]
    assert {"to": [GANG]} in policy["egress"]


def test_the_dashboard_is_open_to_the_operator_alone(make: MakeSpec) -> None:
    policy = document(make(**EVERYTHING), "NetworkPolicy")["spec"]
    open_to = [rule for rule in policy["ingress"] if {"port": 8265, "protocol": "TCP"} in rule.get("ports", [])]
    (rule,) = open_to
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}}}]


def test_whoever_is_named_may_send_requests_and_read_metrics(make: MakeSpec) -> None:
    requests, _, metrics = document(make(**EVERYTHING), "NetworkPolicy")["spec"]["ingress"][1:]
    assert {"ipBlock": {"cidr": "10.0.0.0/8"}} in requests["from"]
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateway"}}} in requests["from"]
    assert [port["port"] for port in metrics["ports"]] == [8080, 8000]


def egress(make: MakeSpec, endpoint: str | None) -> list[dict[str, Any]]:
    """What is open besides the gang itself and DNS."""
    documents = render(make(serving__observe={"otlp_endpoint": endpoint}))
    check_against_kubernetes(documents)
    others: list[dict[str, Any]]
    (policy,) = (one for one in documents if one["kind"] == "NetworkPolicy")
    gang, dns, *others = policy["spec"]["egress"]
    assert gang == {"to": [GANG]}
    assert [port["port"] for port in dns["ports"]] == [53, 53]
    return others


def namespace(name: str) -> dict[str, Any]:
    return {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}]}


@pytest.mark.parametrize(
    ("endpoint", "rule"),
    [
        ("http://10.1.2.3:4318", {"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [TCP | {"port": 4318}]}),
        ("http://[fd00::1]:4318/", {"to": [{"ipBlock": {"cidr": "fd00::1/128"}}], "ports": [TCP | {"port": 4318}]}),
        ("http://10.1.2.3", {"to": [{"ipBlock": {"cidr": "10.1.2.3/32"}}], "ports": [TCP | {"port": 80}]}),
        ("https://traces.example.com", {"ports": [TCP | {"port": 443}]}),
        ("https://traces.example.com:4318/otlp", {"ports": [TCP | {"port": 4318}]}),
        ("http://otel.monitoring.svc:4318", namespace("monitoring")),
        ("http://otel.monitoring.svc.cluster.local.:4318", namespace("monitoring")),
        ("http://otel:4318", namespace("serving")),
    ],
)
def test_traces_leave_for_their_collector_and_nothing_else_does(
    make: MakeSpec, endpoint: str, rule: dict[str, Any]
) -> None:
    assert egress(make, endpoint) == [rule]


def test_nothing_is_open_where_nothing_is_traced(make: MakeSpec) -> None:
    assert egress(make, None) == []


def test_the_pods_are_told_of_the_collector(make: MakeSpec) -> None:
    config = document(make(serving__observe={"otlp_endpoint": "http://10.1.2.3:4318"}), "ConfigMap")
    assert "otlp_endpoint: http://10.1.2.3:4318" in config["data"]["serving.yaml"]


@pytest.mark.parametrize("endpoint", ["http://localhost:4318", "http://127.0.0.1:4318", "http://[::1]:4318"])
def test_a_collector_in_the_pod_itself_is_refused_unless_the_pod_is_the_node(make: MakeSpec, endpoint: str) -> None:
    observe = {"otlp_endpoint": endpoint}
    with pytest.raises(SpecError, match="is the pod itself, where no collector runs"):
        make(serving__observe=observe)
    make(serving__observe=observe, network={"host_network": True}, network_policy={"enabled": False})


def test_a_warning_says_where_a_policy_is_wider_than_the_name_in_it(make: MakeSpec) -> None:
    def told(endpoint: str, **changes: object) -> bool:
        return any(
            "knows no host names" in text
            for text in warnings(make(serving__observe={"otlp_endpoint": endpoint}, **changes))
        )

    assert told("https://traces.example.com")
    assert not told("https://traces.example.com", network_policy={"enabled": False})
    assert not told("http://otel.monitoring.svc:4318")
    assert not told("http://10.1.2.3:4318")

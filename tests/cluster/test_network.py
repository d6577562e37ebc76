"""Who reaches the gang."""

from typing import Any

from cluster.manifest import render
from cluster.spec import ClusterSpec
from tests.cluster.conftest import MakeSpec
from tests.cluster.test_manifest import EVERYTHING, pod_templates

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


def test_an_eviction_of_any_pod_is_refused(make: MakeSpec) -> None:
    budget = document(make(nodes={"count": 2}), "PodDisruptionBudget")["spec"]
    assert budget["minAvailable"] == 3

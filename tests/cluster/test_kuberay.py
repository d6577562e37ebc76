"""What KubeRay's operator would refuse after the API server has taken it."""

from collections.abc import Callable
from typing import Any

import pytest

from cluster.manifests.kuberay_validation import refusal
from cluster.manifests.render import render
from tests.cluster.conftest import MakeSpec

Change = Callable[[dict[str, Any]], object]


def cluster(job: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job["spec"]["rayClusterSpec"]
    return spec


def head(job: dict[str, Any]) -> dict[str, Any]:
    group: dict[str, Any] = cluster(job)["headGroupSpec"]
    return group


def add_env(job: dict[str, Any], name: str, value: str) -> None:
    head(job)["template"]["spec"]["containers"][0]["env"].append({"name": name, "value": value})


@pytest.mark.parametrize("kind", ["job", "cluster"])
def test_what_is_rendered_is_not_refused(make: MakeSpec, kind: str) -> None:
    assert refusal(render(make(ray={"kind": kind}))[-1]) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda job: job["metadata"].update(name="a" * 48), "a RayJob may have 47 characters"),
        (lambda job: job["metadata"].update(name="1a"), "is not a DNS-1035 label"),
        (lambda job: job["spec"].update(submissionMode="Http"), "spec.submissionMode: Http is none of"),
        (lambda job: job["spec"].pop("rayClusterSpec"), "needs a rayClusterSpec or a clusterSelector"),
        (lambda job: job["spec"].update(clusterSelector={"a": "b"}), "the cluster's name is empty"),
        (lambda job: job["spec"].update(submissionMode="InteractiveMode"), "InteractiveMode allows none"),
        (
            lambda job: job["spec"].update(submissionMode="SidecarMode", clusterSelector={"ray.io/cluster": "c"}),
            "SidecarMode allows none",
        ),
        (lambda job: job["spec"].update(suspend=True, shutdownAfterJobFinishes=False), "spec.suspend"),
        (lambda job: job["spec"].update(backoffLimit=-1), "must not be negative"),
        (lambda job: head(job)["template"]["spec"].update(containers=[]), "headGroupSpec: has no container"),
        (lambda job: head(job).update(resources={"CPU": "1"}), "in rayStartParams or in resources, not in both"),
        (lambda job: head(job)["rayStartParams"].update(labels="a=b"), "labels stand in the group's own labels"),
        (lambda job: head(job).update(labels={"a b": "c"}), "a b=c is not a label"),
        (lambda job: cluster(job)["workerGroupSpecs"][0].update(groupName="head"), "none may be head"),
        (lambda job: add_env(job, "RAY_REDIS_ADDRESS", "x"), "gcsFaultToleranceOptions"),
        (lambda job: add_env(job, "REDIS_USERNAME", "x"), "gcsFaultToleranceOptions"),
        (lambda job: add_env(job, "RAY_enable_autoscaler_v2", "1"), "needs enableInTreeAutoscaling"),
        (lambda job: cluster(job).update(rayVersion=""), "token needs a rayVersion, not ''"),
        (lambda job: cluster(job).update(rayVersion="2.51.9"), "token needs Ray 2.52.0"),
    ],
)
def test_what_kuberay_would_refuse_is_said_before(make: MakeSpec, change: Change, words: str) -> None:
    job = render(make())[-1]
    change(job)
    assert words in str(refusal(job))

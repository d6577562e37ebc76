"""Whole manifests: the same bytes every time, and nothing that Kubernetes, KubeRay's definitions or KubeRay refuse."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.loader import load_spec, make_spec
from cluster.config.rules import is_refused
from cluster.errors import SpecError
from cluster.k8s.names import COMPONENT, CONFIG_HASH, INSTANCE, SPEC_HASH
from cluster.manifests.render import render, to_yaml
from serving.config import load_config
from tests.cluster.conftest import CONFIGS, MakeSpec, changed_tree
from tests.cluster.definitions import Definition

GOLDEN = Path(__file__).parent / "golden"
KUBERNETES = "1.34"

SCHEDULERS: dict[str, dict[str, Any]] = {
    "none": {"gang": {"priority_class": "high"}},
    "volcano": {"gang": {"queue": "q", "priority_class": "high", "topology_level": "2"}},
    "yunikorn": {"gang": {"queue": "root.q", "priority_class": "high"}},
    "kueue": {"gang": {"queue": "q", "priority_class": "high", "topology_level": "rack"}},
    "kai": {"gang": {"queue": "q", "topology": "t", "topology_level": "rack", "topology_required": False}},
    "in-tree": {"gang": {}},
    "scheduler-plugins": {"gang": {}, "ray": {"kind": "cluster"}},
}

EVERYTHING: dict[str, Any] = {
    "nodes": {
        "product": "NVIDIA-H100-80GB-HBM3",
        "selector": {"pool": "gpu"},
        "head_selector": {"pool": "cpu"},
        "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "gangway", "effect": "NoExecute"}],
        "runtime_class": "nvidia",
    },
    "image": {"pull_secrets": ["registry"]},
    "network": {
        "interface": "eth0",
        "ib_hca": "mlx5",
        "ib_gid_index": 3,
        "rdma_resource": "rdma/hca",
        "rdma_count": 4,
        "attachments": ["net/rail0", "net/rail1"],
    },
    "storage": {"shard_cache_host_path": "/var/lib/gangway"},
    "storage__model": {"sub_path": "llama"},
    "security": {"ray_token_secret": "token", "run_as_user": 0},
    "service": {"type": "LoadBalancer", "annotations": {"lb.example.com/health-path": "/readyz"}},
    "network_policy": {
        "allow_namespaces": ["gateway"],
        "allow_cidrs": ["10.0.0.0/8"],
        "metrics_namespaces": ["monitoring"],
    },
    "env": {"HF_HUB_OFFLINE": "1"},
    "secret_env": {"HF_TOKEN": {"secret": "hf", "key": "token"}},
}


def scheduler_tree(scheduler: str) -> dict[str, Any]:
    changes = SCHEDULERS[scheduler]
    return changed_tree(**(changes | {"gang": changes["gang"] | {"scheduler": scheduler}}))


def golden(name: str, text: str) -> None:
    """Compare with the file of this name; GANGWAY_GOLDEN=write writes it instead, to be read before it is kept."""
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("GANGWAY_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text(), f"{path} differs; GANGWAY_GOLDEN=write pytest tests/cluster writes it again"


def pod_templates(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """The head's, then the ranks'."""
    cluster = resource["spec"].get("rayClusterSpec", resource["spec"])
    return [cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]]


def check_against_kubernetes(documents: list[dict[str, Any]]) -> None:
    """Every document of Kubernetes' own, and every pod template as the pod that it makes, field by field."""
    for document in documents[:-1]:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    for template in pod_templates(documents[-1]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", **template["metadata"]}}
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, KUBERNETES, strict=True)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_renders_to_its_golden_file(path: Path) -> None:
    golden(path.stem, to_yaml(render(load_spec(path))))


def test_schedulers_differ_as_their_golden_file_says() -> None:
    found = {}
    for scheduler in SCHEDULERS:
        resource = render(make_spec(scheduler_tree(scheduler)))[-1]
        head, worker = pod_templates(resource)
        found[scheduler] = {
            "kind": resource["kind"],
            "labels": resource["metadata"]["labels"],
            "worker annotations": worker["metadata"]["annotations"],
            "head priority": head["spec"].get("priorityClassName"),
            "worker priority": worker["spec"].get("priorityClassName"),
        }
    golden("schedulers", yaml.safe_dump(found, sort_keys=False))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path: Path, definitions: dict[str, Definition]) -> None:
    documents = render(load_spec(path))
    check_against_kubernetes(documents)
    assert definitions[documents[-1]["kind"]].problems(documents[-1]) == []


@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [(scheduler, kind) for scheduler in SCHEDULERS for kind in ("job", "cluster") if not is_refused(scheduler, kind)],
)
def test_every_setting_renders_to_what_is_valid(scheduler: str, kind: str, definitions: dict[str, Definition]) -> None:
    gang = SCHEDULERS[scheduler]["gang"] | {"scheduler": scheduler}
    documents = render(make_spec(changed_tree(**EVERYTHING, gang=gang, ray={"kind": kind})))
    check_against_kubernetes(documents)
    assert definitions[documents[-1]["kind"]].problems(documents[-1]) == []


def test_the_definitions_notice_a_field_that_does_not_exist(make: MakeSpec, definitions: dict[str, Definition]) -> None:
    resource = render(make())[-1]
    resource["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    resource["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["nodeselector"] = {}
    assert len(definitions["RayJob"].problems(resource)) == 2


@given(
    count=st.integers(2, 20),
    spares=st.integers(0, 3),
    gpus=st.integers(0, 8),
    kind=st.sampled_from(["job", "cluster"]),
    policy=st.booleans(),
    protect=st.booleans(),
    cache=st.sampled_from([None, "~/.cache"]),
    volume=st.sampled_from([{}, {"claim": None}, {"claim": None, "host_path": "/srv"}]),
)
def test_whatever_is_asked_for_the_gang_has_one_size_and_the_manifest_one_form(
    count: int,
    spares: int,
    gpus: int,
    kind: str,
    policy: bool,
    protect: bool,
    cache: str | None,
    volume: dict[str, Any],
) -> None:
    tree = changed_tree(
        nodes={"count": count, "spares": spares, "gpus_per_node": gpus},
        serving__parallel={"tensor_parallel_size": count * max(1, gpus), "gpus_per_rank": min(1, gpus)},
        serving__model={"shard_cache": cache},
        ray={"kind": kind},
        network_policy={"enabled": policy},
        disruption={"protect": protect},
        storage__model=volume,
    )
    documents = render(make_spec(tree))
    text = to_yaml(documents)
    assert text == to_yaml(render(make_spec(tree)))
    assert list(yaml.safe_load_all(text)) == documents
    kinds = [document["kind"] for document in documents]
    assert ("NetworkPolicy" in kinds, "PodDisruptionBudget" in kinds) == (policy, protect)
    cluster = documents[-1]["spec"].get("rayClusterSpec", documents[-1]["spec"])
    group = cluster["workerGroupSpecs"][0]
    assert group["minReplicas"] == count
    assert group["replicas"] == group["maxReplicas"] == count + spares
    assert group["numOfHosts"] == 1
    check_names(documents)


def check_names(documents: list[dict[str, Any]]) -> None:
    """Mounts name volumes that are there, selectors match pods that are made, and all stand in one namespace."""
    for template in pod_templates(documents[-1]):
        (container,) = template["spec"]["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}
        paths = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert not any(one != other and one.startswith(other + "/") for one, other in itertools.product(paths, paths))
        names = [variable["name"] for variable in container["env"]]
        assert names == sorted(set(names))
        assert template["metadata"]["labels"][INSTANCE] == "gang"
    assert {document["metadata"]["namespace"] for document in documents} == {"serving"}


def test_the_configuration_in_the_manifest_is_one_that_the_server_takes(make: MakeSpec) -> None:
    spec = make()
    (config,) = (document for document in render(spec) if document["kind"] == "ConfigMap")
    assert load_config(yaml.safe_load(config["data"]["serving.yaml"])) == spec.config_in_pods()


def test_hashes_change_with_what_they_stand_for_and_with_nothing_else(make: MakeSpec) -> None:
    def hashes(**changes: object) -> tuple[str, str]:
        resource = render(make(**changes))[-1]
        pod = pod_templates(resource)[1]["metadata"]["annotations"][CONFIG_HASH]
        return resource["metadata"]["annotations"][SPEC_HASH], pod

    first = hashes()
    assert hashes() == first
    moved = hashes(nodes={"selector": {"pool": "b"}})
    assert moved[0] != first[0]
    assert moved[1] == first[1]
    other = hashes(serving__engine={"max_running": 3})
    assert other[0] != first[0]
    assert other[1] != first[1]
    assert hashes(timeouts={"ready_s": 5}) == first


def test_a_pod_is_in_one_disruption_budget_and_one_with_ranks_may_go(make: MakeSpec) -> None:
    documents = render(make(nodes={"spares": 1}))
    budgets = [document["spec"] for document in documents if document["kind"] == "PodDisruptionBudget"]
    for template, wanted in zip(pod_templates(documents[-1]), (1, 2), strict=True):
        labels = template["metadata"]["labels"].items()
        (budget,) = (spec for spec in budgets if spec["selector"]["matchLabels"].items() <= labels)
        assert budget["minAvailable"] == wanted, labels
        assert COMPONENT in budget["selector"]["matchLabels"]


def test_the_first_process_of_a_pod_stays_the_shell_that_waits_for_orphans(make: MakeSpec, tmp_path: Path) -> None:
    for template in pod_templates(render(make())[-1]):
        (command,) = template["spec"]["containers"][0]["command"]
        as_kuberay = f"{command} && ulimit -n 64; {sys.executable} -c 'import os; print(os.getppid())'"
        (tmp_path / "python").write_text("#!/bin/sh\n")
        (tmp_path / "python").chmod(0o755)
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        with subprocess.Popen(["/bin/bash", "-c", "--", as_kuberay], stdout=subprocess.PIPE, env=environment) as shell:
            assert shell.stdout is not None
            assert int(shell.stdout.read()) == shell.pid, "bash has become its last command"


def test_one_node_needs_so_many_words(make: MakeSpec) -> None:
    spec = make(nodes={"count": 1}, serving__parallel={"tensor_parallel_size": 8})
    with pytest.raises(
        SpecError, match="one node is enough, so use plain Ray Serve on one node; or say --allow-single"
    ):
        render(spec)
    assert render(spec, allow_single_node=True)[-1]["kind"] == "RayJob"


def test_no_value_of_a_secret_is_in_a_manifest(make: MakeSpec) -> None:
    spec = make(secret_env={"HF_TOKEN": {"secret": "hf", "key": "token"}}, security={"ray_token_secret": "ray"})
    documents = render(spec)
    assert "Secret" not in {document["kind"] for document in documents}
    text = to_yaml(documents)
    assert "secretKeyRef" in text
    assert "RAY_AUTH_TOKEN" not in text


def test_a_document_that_is_changed_leaves_the_others_as_they_are(make: MakeSpec) -> None:
    documents = render(make())
    documents[0]["metadata"]["labels"]["more"] = "x"
    assert all("more" not in document["metadata"]["labels"] for document in documents[1:])

"""`doctor` against a whole fake cluster: a ready one passes, and each lack is one line with its fix."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.config.loader import load_spec
from cluster.config.spec import ClusterSpec
from cluster.doctor.checks import Finding, examine
from cluster.doctor.facts import Reader, named_secrets
from cluster.doctor.operator import argument
from cluster.k8s.client import Client
from cluster.k8s.connection import connect
from cluster.k8s.kinds import CLUSTER_QUEUE, LOCAL_QUEUE
from cluster.k8s.names import GPU
from cluster.status.snapshot import asked_for
from tests.kube.scene import H100, add_node, add_operator
from tests.kube.server import KubeServer
from tests.kube.store import Write

Object = dict[str, Any]
CONFIG = Path(__file__).parents[2] / "configs" / "cluster" / "llama-3.1-405b-tp16-2x8-h100.yaml"
LAPTOP = CONFIG.with_name("smollm2-135m-tp2-kind-cpu.yaml")

SINCE = {"lastTransitionTime": "2026-11-23T12:00:00Z"}

Examine = Callable[..., list[Finding]]


def plain(api_version: str, kind: str, name: str, namespace: str = "", **rest: Any) -> Object:
    meta = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": api_version, "kind": kind, "metadata": meta, **rest}


def set_scene(server: KubeServer, spec: ClusterSpec) -> None:
    """Everything that a configuration asks of a cluster."""
    store = server.store
    if spec.namespace != "default":
        store.create("namespaces", plain("v1", "Namespace", spec.namespace))
    for name in ("a", "b"):
        resource = spec.network.rdma_resource
        add_node(store, name, product=spec.nodes.product or H100, resources={resource: "8"} if resource else {})
    for name in named_secrets(spec):
        store.create("secrets", plain("v1", "Secret", name, spec.namespace))
    if spec.storage.model.claim:
        claim = plain("v1", "PersistentVolumeClaim", spec.storage.model.claim, spec.namespace)
        claim |= {"spec": {"accessModes": ["ReadOnlyMany"]}, "status": {"phase": "Bound"}}
        store.create("persistentvolumeclaims", claim, keep_status=True)
    set_queue(server, spec)
    for name in spec.network.attachments:
        place, _, rest = name.partition("/")
        store.create(
            "network-attachment-definitions.k8s.cni.cncf.io",
            plain("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition", rest, place),
        )


def set_queue(server: KubeServer, spec: ClusterSpec) -> None:
    """The queue that a configuration names, open."""
    if spec.gang.scheduler == "kueue":
        server.install(("localqueues", "kueue.x-k8s.io"))
        queue = plain(LOCAL_QUEUE.api_version, "LocalQueue", str(spec.gang.queue), spec.namespace)
        active = {"conditions": [{"type": "Active", "status": "True", "reason": "Ready", "message": "", **SINCE}]}
        queue |= {"spec": {"clusterQueue": "all"}, "status": active}
        server.store.create("localqueues.kueue.x-k8s.io", queue, keep_status=True)
    elif spec.gang.scheduler == "volcano":
        server.install(("queues", "scheduling.volcano.sh"))
        queue = plain("scheduling.volcano.sh/v1beta1", "Queue", str(spec.gang.queue)) | {"spec": {"weight": 1}}
        queue |= {"status": {"state": "Open", "allocated": {}}}
        server.store.create("queues.scheduling.volcano.sh", queue, keep_status=True)


@pytest.fixture
def spec() -> ClusterSpec:
    return load_spec(CONFIG, ["gang.scheduler=volcano", "gang.queue=research", "gang.topology_level=null"])


@pytest.fixture
def look(kube: KubeServer, client: Client, spec: ClusterSpec) -> Examine:
    set_scene(kube, spec)

    def run(*, batch_scheduler: str = "volcano", **rest: Any) -> list[Finding]:
        add_operator(kube.store, batch_scheduler=batch_scheduler, **rest)
        return examine(Reader(client, spec).read(), spec)

    return run


def failed(findings: list[Finding]) -> list[str]:
    assert all(row.fix for row in findings if row.level == "fail"), "every failure says what to do"
    return [row.text for row in findings if row.level == "fail"]


def test_a_cluster_that_has_all_passes(look: Examine) -> None:
    findings = look()
    assert failed(findings) == []
    assert {"server", "rights", "definitions", "operator", "queue", "nodes"} <= {
        row.check for row in findings if row.level == "ok"
    }


def test_spares_need_nodes_and_quota_too(kube: KubeServer, client: Client, spec: ClusterSpec) -> None:
    set_scene(kube, spec)
    add_operator(kube.store, batch_scheduler="volcano")
    wider = spec.model_copy(update={"nodes": spec.nodes.model_copy(update={"spares": 60})})
    told = failed(examine(Reader(client, wider).read(), wider))
    assert any("2 nodes and 60 more as spares" in text for text in told)
    assert asked_for(wider)["pods"] == 63
    assert asked_for(wider)[GPU] == 62 * spec.nodes.gpus_per_node


def test_doctor_only_reads(look: Examine, kube: KubeServer) -> None:
    kube.calls.clear()
    look()
    writes = [path for method, path in kube.calls if method != "GET" and "selfsubjectaccessreviews" not in path]
    assert writes == []


def test_a_missing_right_is_named(look: Examine, kube: KubeServer) -> None:
    kube.rbac.denied.add(("create", "rayjobs.ray.io"))
    assert any("create rayjobs.ray.io" in text for text in failed(look()))


def test_what_may_not_be_read_is_skipped_not_failed(look: Examine, kube: KubeServer) -> None:
    kube.rbac.denied |= {("list", "nodes"), ("get", "secrets"), ("list", "deployments.apps")}
    findings = look()
    assert failed(findings) == []
    assert {"nodes", "operator"} <= {row.check for row in findings if row.level == "skipped"}


def test_an_operator_for_another_scheduler_is_told_with_the_argument(look: Examine) -> None:
    rows = [row for row in look(batch_scheduler="yunikorn") if row.level == "fail"]
    assert any("--batch-scheduler=volcano" in row.fix for row in rows)


def test_an_operator_that_would_refuse_the_job_fails(kube: KubeServer, client: Client) -> None:
    spec = load_spec(CONFIG, ["ray.kind=job"])
    set_scene(kube, spec)
    add_operator(kube.store, batch_scheduler="scheduler-plugins")
    rows = [row for row in examine(Reader(client, spec).read(), spec) if row.level == "fail"]
    assert [row.check for row in rows] == ["operator"]
    assert "--batch-scheduler=scheduler-plugins: KubeRay refuses" in rows[0].text
    assert rows[0].fix == "set ray.kind to cluster"


def test_a_volcano_queue_that_is_too_small_fails_with_both_amounts(look: Examine, kube: KubeServer) -> None:
    def small(queue: Object) -> Object:
        return {**queue, "spec": {"weight": 1, "capability": {"nvidia.com/gpu": "12", "cpu": "1k"}}}

    kube.store.change("queues.scheduling.volcano.sh", "research", "", small)
    assert failed(look()) == ["Queue research allows 12 of nvidia.com/gpu, and the gang asks for 16"]


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({}, True),
        ({"cohortName": "all"}, False),
        ({"flavors": [{"name": n, "resources": [{"name": "nvidia.com/gpu", "nominalQuota": 8}]} for n in "ab"]}, False),
    ],
)
def test_a_kueue_quota_is_compared_where_it_can_be_known(
    kube: KubeServer, client: Client, change: Object, fails: bool
) -> None:
    spec = load_spec(CONFIG)
    set_scene(kube, spec)
    add_operator(kube.store)
    add_cluster_queue(kube, 8, **change)
    told = "ClusterQueue all allows 8 of nvidia.com/gpu, and the gang asks for 16"
    assert failed(examine(Reader(client, spec).read(), spec)) == ([told] if fails else [])


def add_cluster_queue(server: KubeServer, gpus: int, *, flavors: list[Object] | None = None, **spec: Any) -> None:
    """The ClusterQueue `all`, which the LocalQueue leads to."""
    server.install(("clusterqueues", "kueue.x-k8s.io"))
    quota = {"name": "h100", "resources": [{"name": "nvidia.com/gpu", "nominalQuota": gpus}]}
    group = {"coveredResources": ["nvidia.com/gpu"], "flavors": flavors or [quota]}
    queue = plain(CLUSTER_QUEUE.api_version, "ClusterQueue", "all") | {"spec": {"resourceGroups": [group], **spec}}
    server.store.create("clusterqueues.kueue.x-k8s.io", queue)


def test_no_nodes_at_all_is_a_whole_sentence(look: Examine, kube: KubeServer) -> None:
    for name in ("a", "b"):
        kube.store.delete("nodes", name)
    assert "there are no nodes at all, 2 nodes x 8 GPUs of NVIDIA-H100-80GB-HBM3 are needed" in failed(look())


def test_a_gang_without_gpus_is_compared_in_cpus_and_memory(kube: KubeServer, client: Client) -> None:
    spec = load_spec(LAPTOP, ["resources.worker.cpu=200"])
    set_scene(kube, spec)
    add_operator(kube.store)
    (told,) = failed(examine(Reader(client, spec).read(), spec))
    assert told.startswith("0 nodes fit, 2 nodes x 200 CPUs and 4Gi are needed: node a has 192 CPUs and 2000Gi free")


def test_how_kuberay_is_installed_begins_with_where_it_is_found(spec: ClusterSpec, tmp_path: Path) -> None:
    with KubeServer(kuberay=False) as bare:
        client = connect(str(bare.kubeconfig(tmp_path / "kubeconfig")))
        rows = [row for row in examine(Reader(client, spec).read(), spec) if "helm" in row.fix]
    assert rows
    assert all(row.fix.startswith("helm repo add kuberay ") for row in rows)


def test_an_operator_that_is_too_old_fails(look: Examine) -> None:
    assert any("does not number the pods with ranks" in text for text in failed(look(image="v1.5.1")))


def test_a_cordoned_node_leaves_too_few(look: Examine, kube: KubeServer) -> None:
    kube.store.change("nodes", "b", "", lambda node: {**node, "spec": {"unschedulable": True}})
    assert any("1 nodes fit" in text and "node b is cordoned" in text for text in failed(look()))


def test_a_claim_that_one_node_can_mount_fails(look: Examine, kube: KubeServer, spec: ClusterSpec) -> None:
    def alone(claim: Object) -> Object:
        return {**claim, "spec": {"accessModes": ["ReadWriteOnce"]}}

    kube.store.change("persistentvolumeclaims", str(spec.storage.model.claim), spec.namespace, alone)
    assert any("only one node can mount it" in text for text in failed(look()))


def test_a_quota_that_is_too_small_fails_with_both_numbers(look: Examine, kube: KubeServer, spec: ClusterSpec) -> None:
    status = {"hard": {"requests.nvidia.com/gpu": "12"}, "used": {"requests.nvidia.com/gpu": "2"}}
    quota = plain("v1", "ResourceQuota", "gpus", spec.namespace) | {"spec": {}, "status": status}
    kube.store.create("resourcequotas", quota, keep_status=True)
    assert any("leaves 10 of requests.nvidia.com/gpu, 16 are needed" in text for text in failed(look()))


def test_without_kuberay_its_definitions_fail(spec: ClusterSpec, tmp_path: Path) -> None:
    with KubeServer(kuberay=False) as bare:
        client = connect(str(bare.kubeconfig(tmp_path / "kubeconfig")))
        texts = failed(examine(Reader(client, spec).read(), spec))
    assert "rayjobs.ray.io is not served as ray.io/v1" in texts
    assert "no KubeRay operator runs" in texts


def test_an_argument_is_found_however_it_is_written() -> None:
    assert argument(["/manager", "-batch-scheduler=kai-scheduler"], "batch-scheduler") == "kai-scheduler"
    assert argument(["--enable-batch-scheduler"], "enable-batch-scheduler") == "true"
    assert argument(["/manager"], "batch-scheduler") is None


def test_a_limit_range_below_a_pods_size_fails(look: Examine, kube: KubeServer, spec: ClusterSpec) -> None:
    rows = [{"type": "Container", "max": {"memory": "1Gi", "cpu": "1000"}}]
    kube.store.create("limitranges", plain("v1", "LimitRange", "small", spec.namespace) | {"spec": {"limits": rows}})
    texts = failed(look())
    assert any(text.startswith("LimitRange small allows 1Gi of memory, and the worker asks for") for text in texts)
    assert not any("of cpu, and the" in text for text in texts)


def test_a_claim_that_no_storage_class_can_bind_fails(look: Examine, kube: KubeServer, spec: ClusterSpec) -> None:
    def waiting(claim: Object) -> Object:
        return {**claim, "spec": claim["spec"] | {"storageClassName": "fast"}, "status": {"phase": "Pending"}}

    kube.store.change("persistentvolumeclaims", str(spec.storage.model.claim), spec.namespace, waiting)
    kube.store.change(
        "persistentvolumeclaims", str(spec.storage.model.claim), spec.namespace, waiting, Write(subresource="status")
    )
    assert any("there is no StorageClass fast" in text for text in failed(look()))


def test_without_the_right_to_stop_a_job_a_warning_says_what_down_then_does(look: Examine, kube: KubeServer) -> None:
    kube.rbac.denied.add(("create", "services/proxy"))
    findings = look()
    assert failed(findings) == []
    assert any("`down` cuts off requests that run" in row.text for row in findings if row.level == "warn")


def test_what_the_configuration_could_do_better_is_a_warning(look: Examine) -> None:
    assert any("digest" in row.text for row in look() if row.check == "config")

"""What in a cluster configuration could never work, or is better done otherwise, as sentences. No cluster is asked."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from cluster.config.collector import collector_of
from cluster.config.spec import ClusterSpec
from cluster.k8s.names import MAX_CLUSTER_NAME, MAX_JOB_NAME, is_label
from cluster.k8s.quantity import parse_quantity
from serving.addresses import has_credentials, shown_in

OLDEST_RAY = (2, 53, 0)
"""KubeRay probes it over HTTP; older ones need wget in the image."""

RAY_PORTS = {6379, 8080, 8265, 10001, 52365}
"""GCS, metrics, dashboard, client, agent."""

KUBERAY_ENV = {
    "FQ_RAY_IP",
    "KUBERAY_GEN_RAY_START_CMD",
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_CLOUD_INSTANCE_ID",
    "RAY_CLUSTER_NAME",
    "RAY_DASHBOARD_ADDRESS",
    "RAY_ENABLE_K8S_TOKEN_AUTH",
    "RAY_IP",
    "RAY_JOB_SUBMISSION_ID",
    "RAY_NODE_TYPE_NAME",
    "RAY_PORT",
    "RAY_REDIS_ADDRESS",
    "RAY_USAGE_STATS_KUBERAY_IN_USE",
    "RAY_enable_autoscaler_v2",
    "RAY_external_storage_namespace",
    "REDIS_PASSWORD",
    "REDIS_USERNAME",
}
"""Variables that KubeRay sets or refuses (KubeRay 1.7, `utils/constant.go` and `utils/validation.go`)."""

RENDERED_ENV = {
    "GLOO_SOCKET_IFNAME": "network.interface",
    "NCCL_DEBUG": "network.nccl_debug",
    "NCCL_IB_GID_INDEX": "network.ib_gid_index",
    "NCCL_IB_HCA": "network.ib_hca",
    "NCCL_SOCKET_IFNAME": "network.interface",
    "RAY_JOB_STOP_WAIT_TIME_S": "serving.fault.drain_timeout_s",
}
"""Variables that have a setting of their own."""

_SECRET = re.compile(
    r"(^|_)(TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRET|APIKEYS?|KEYS?|CREDENTIALS?|CONNECTION_STRING|OTLP(_\w+)?_HEADERS)(_|$)",
    re.IGNORECASE,
)
_TAGGED_RAY = re.compile(r"ray[-_.]?v?(\d+\.\d+\.\d+)", re.IGNORECASE)

NO_JOBS = {"scheduler-plugins"}
"""Schedulers for which KubeRay refuses every RayJob ("currently only RayCluster is supported"), at every look, without
an event (KubeRay 1.7, `batchscheduler/`)."""

JOBS_REFUSED = "KubeRay refuses every RayJob with it"
STANDING_INSTEAD = "set ray.kind to cluster"

TAKEN = ("/etc", "/var/cache/gangway", "/dev", "/proc", "/sys")
"""Folders of the image that no volume may cover."""

WITH_QUEUES = {"volcano", "yunikorn", "kueue", "kai"}
WITH_TOPOLOGY = {"volcano", "kueue", "kai"}


def complaints(spec: ClusterSpec) -> Iterator[str]:
    """Sentences about what could never work, the first one first."""
    for check in (
        _name,
        _ranks,
        _placement,
        _room,
        _ray,
        _gang,
        _env,
        _addresses,
        _paths,
        _exposure,
        _network,
        _traces,
    ):
        yield from check(spec)


def warnings(spec: ClusterSpec) -> list[str]:
    """Sentences about what works, but is not as it should be."""
    found = []
    if "@sha256:" not in spec.image.ref:
        found.append(f"image.ref {spec.image.ref} is not fixed by a digest: pods may come to run different images")
    if _TAGGED_RAY.search(_tag(spec.image.ref)) is None:
        found.append(f"nothing in image.ref says which Ray is in it: see that it is {spec.ray.version}")
    if spec.gang.scheduler == "none" and spec.nodes.count > 1:
        found.append("gang.scheduler is none: pods are placed one by one, and may hold nodes while others are missing")
    if not spec.network_policy.enabled:
        found.append("network_policy.enabled is false: every pod of the cluster can reach the ranks' ports")
    if spec.security.api_keys_secret is None:
        found.append("security.api_keys_secret is not set: anyone who reaches the Service may ask")
    collector = collector_of(spec)
    if collector and spec.network_policy.enabled and collector.address is None and collector.namespace is None:
        found.append(
            f"a NetworkPolicy knows no host names: to reach {collector.host}, pods may reach port {collector.port} of "
            "any host; serving.observe.otlp_endpoint with an IP address or NAME.NAMESPACE.svc is narrower"
        )
    if spec.network.rdma_resource and spec.security.run_as_user != 0:
        found.append("RDMA as a user other than 0 needs a container runtime without a limit on locked memory")
    return found


def _name(spec: ClusterSpec) -> Iterator[str]:
    longest = MAX_JOB_NAME if spec.ray.kind == "job" else MAX_CLUSTER_NAME
    if not is_label(spec.name):
        yield f"name: {spec.name!r} must be lower-case letters, digits and -, beginning with a letter"
    elif len(spec.name) > longest:
        yield f"name: {spec.name} has {len(spec.name)} characters; KubeRay takes {longest} for a {spec.ray.kind}"


def _ranks(spec: ClusterSpec) -> Iterator[str]:
    parallel, nodes = spec.serving.parallel, spec.nodes
    ranks, gpus = parallel.tensor_parallel_size, nodes.count * nodes.gpus_per_node
    if bool(parallel.gpus_per_rank) != bool(nodes.gpus_per_node):
        yield (
            f"nodes.gpus_per_node is {nodes.gpus_per_node}, but serving.parallel.gpus_per_rank is "
            f"{parallel.gpus_per_rank}: both are 0 on CPUs, neither on GPUs"
        )
    elif gpus and ranks != gpus:
        yield (
            f"serving.parallel.tensor_parallel_size is {ranks}, but nodes.count x nodes.gpus_per_node is "
            f"{nodes.count} x {nodes.gpus_per_node} = {gpus}: there is one rank for each GPU"
        )
    elif ranks % nodes.count:
        yield f"serving.parallel.tensor_parallel_size {ranks} cannot be shared equally by {nodes.count} nodes"


def _placement(spec: ClusterSpec) -> Iterator[str]:
    parallel = spec.serving.parallel
    if parallel.placement == "STRICT_SPREAD" and spec.ranks_per_node > 1:
        yield (
            f"serving.parallel.placement STRICT_SPREAD puts one rank on a pod, but each has {spec.ranks_per_node}: "
            "use PACK"
        )
    if parallel.placement == "SPREAD" and spec.ranks_per_node > 1 and spec.nodes.spares:
        yield (
            f"serving.parallel.placement SPREAD would put some of a pod's {spec.ranks_per_node} ranks on the spares "
            "(nodes.spares), which then are none: use PACK"
        )


def _room(spec: ClusterSpec) -> Iterator[str]:
    worker = spec.resources.worker
    need = spec.ranks_per_node * spec.serving.parallel.cpus_per_rank
    if parse_quantity(worker.cpu) < need:
        yield (
            f"resources.worker.cpu {worker.cpu} is less than what its ranks reserve: {spec.ranks_per_node} x "
            f"{spec.serving.parallel.cpus_per_rank}"
        )
    if parse_quantity(spec.resources.shm) > parse_quantity(worker.memory):
        yield f"resources.shm {spec.resources.shm} is part of resources.worker.memory {worker.memory}, which is less"
    if min(map(parse_quantity, (worker.memory, spec.resources.head.cpu, spec.resources.head.memory))) <= 0:
        yield "resources: cpu and memory must be more than 0"


def _ray(spec: ClusterSpec) -> Iterator[str]:
    if tuple(map(int, spec.ray.version.split("."))) < OLDEST_RAY:
        yield f"ray.version {spec.ray.version} is too old: the first that works is {'.'.join(map(str, OLDEST_RAY))}"
    tagged = _TAGGED_RAY.search(_tag(spec.image.ref))
    if tagged is not None and tagged[1] != spec.ray.version:
        yield f"ray.version is {spec.ray.version}, but image.ref {spec.image.ref} says {tagged[1]}"


def _tag(ref: str) -> str:
    return ref.partition("@")[0].rpartition("/")[2].partition(":")[2]


def _gang(spec: ClusterSpec) -> Iterator[str]:
    gang = spec.gang
    if is_refused(gang.scheduler, spec.ray.kind):
        yield f"gang.scheduler {gang.scheduler}: {JOBS_REFUSED}; {STANDING_INSTEAD}"
    if gang.scheduler in {"kueue", "kai"} and gang.queue is None:
        yield f"gang.queue: {gang.scheduler} leaves pods without a queue pending for ever; name one"
    if gang.queue is not None and gang.scheduler not in WITH_QUEUES:
        yield f"gang.queue: the scheduler {gang.scheduler} has no queues"
    if gang.topology_level is not None and gang.scheduler not in WITH_TOPOLOGY:
        yield f"gang.topology_level: with the scheduler {gang.scheduler} nothing would obey it"
    if gang.scheduler == "volcano" and gang.topology_level is not None and not gang.topology_level.isdigit():
        yield f"gang.topology_level: Volcano's is the number of a tier, not {gang.topology_level}"
    if (gang.scheduler == "kai" and gang.topology_level is not None) != (gang.topology is not None):
        yield "gang.topology: KAI's topology_level needs the name of its Topology, and nothing else takes one"


def is_refused(scheduler: str, kind: str) -> bool:
    """Whether KubeRay would silently refuse that kind where its operator was started for this scheduler."""
    return kind == "job" and scheduler in NO_JOBS


def _env(spec: ClusterSpec) -> Iterator[str]:
    for name in sorted(spec.env.keys() | spec.secret_env.keys()):
        if name in KUBERAY_ENV:
            yield f"env: {name} is KubeRay's own to set"
        elif name in RENDERED_ENV:
            yield f"env: {name} has a setting of its own, {RENDERED_ENV[name]}"
    for name in sorted(spec.env):
        if name in spec.secret_env:
            yield f"env: {name} is in secret_env as well"
        elif _SECRET.search(name):
            yield f"env: {name} looks like a secret, which the manifest would show: put it into secret_env"


def _addresses(spec: ClusterSpec) -> Iterator[str]:
    """Whatever is in the tree is in the manifest, or may be one day."""
    for key, text in _texts(spec.model_dump(mode="json"), ()):
        if has_credentials(text):
            yield (
                f"{key}: {shown_in(text)} holds a credential, which the manifest would show: put it into a Secret that "
                "secret_env names"
            )


def _texts(tree: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Each text in a tree, after the keys that lead to it."""
    if isinstance(tree, str):
        yield ".".join(keys), tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _texts(value, (*keys, str(key)))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _texts(value, (*keys, str(index)))


def _paths(spec: ClusterSpec) -> Iterator[str]:
    path, mount = PurePosixPath(spec.serving.model.path), PurePosixPath(spec.storage.model.mount_path)
    if not path.is_absolute() or not path.is_relative_to(mount):
        yield f"serving.model.path {path} is not in storage.model.mount_path {mount}: no pod would find it"
    yield from _mounts(spec)


def _mounts(spec: ClusterSpec) -> Iterator[str]:
    for name, volume in (("model", spec.storage.model), ("batch", spec.storage.batch)):
        mount = PurePosixPath("/none" if volume is None else volume.mount_path)
        if mount == PurePosixPath("/") or any(mount.is_relative_to(taken) for taken in TAKEN):
            yield f"storage.{name}.mount_path {mount} is in use by the image"


def _exposure(spec: ClusterSpec) -> Iterator[str]:
    security = spec.serving.security
    if spec.security.api_keys_secret is None and security.api_keys_file is not None:
        yield (
            f"serving.security.api_keys_file {security.api_keys_file} is in no pod: put its content into a Secret, "
            "under the key `keys`, and name that in security.api_keys_secret"
        )
    elif spec.security.api_keys_secret is None and not security.insecure:
        yield (
            "security.api_keys_secret: pods are reachable by others, so name a Secret with bearer keys, or set "
            "serving.security.insecure=true to go without"
        )
    elif spec.security.api_keys_secret is None and security.limits_keys:
        yield "serving.security: limits per key need security.api_keys_secret, by which callers are told apart"
    if spec.serving.http.port in RAY_PORTS:
        yield f"serving.http.port {spec.serving.http.port} is one of Ray's own in a pod"


def _network(spec: ClusterSpec) -> Iterator[str]:
    if spec.network.host_network and spec.network_policy.enabled:
        yield "network.host_network: no NetworkPolicy holds there; set network_policy.enabled=false to say so"
    if spec.network.rdma_resource == "nvidia.com/gpu":
        yield "network.rdma_resource: nvidia.com/gpu is no RDMA device"
    if spec.network.rdma_resource and not spec.nodes.gpus_per_node:
        yield "network.rdma_resource: ranks on CPUs talk over gloo, which uses no RDMA"


def _traces(spec: ClusterSpec) -> Iterator[str]:
    collector = collector_of(spec)
    if collector and collector.in_the_pod and not spec.network.host_network:
        yield (
            f"serving.observe.otlp_endpoint {spec.serving.observe.otlp_endpoint} is the pod itself, where no collector "
            "runs: name a Service as NAME.NAMESPACE.svc, or another host"
        )

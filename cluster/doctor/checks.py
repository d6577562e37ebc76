"""Is this cluster ready for this gang? A table of pure checks over `facts`, each with what to do when it fails."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from cluster.config.rules import warnings
from cluster.config.spec import ClusterSpec
from cluster.doctor.facts import RAY_DEFINITIONS, Facts, storage_class_of
from cluster.doctor.operator import Level, Told, check_operator
from cluster.k8s.kinds import QUEUES, Manifest
from cluster.k8s.names import GPU, INSTALL
from cluster.k8s.quantity import parse_quantity
from cluster.status.node_capacity import NodeRoom, room
from cluster.status.queues import shortages
from cluster.status.snapshot import asked_for, gang_of, labels, status

SHARED_MODES = {"ReadWriteMany", "ReadOnlyMany"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the table."""

    check: str
    level: Level
    text: str
    fix: str = ""

    def json(self) -> dict[str, str]:
        return asdict(self)


Check = Callable[[Facts, ClusterSpec], Told]


def check_server(facts: Facts, spec: ClusterSpec) -> Told:  # noqa: ARG001  one signature
    """It answered, or this would not be called."""
    yield "ok", f"{facts.server} runs Kubernetes {facts.version}", ""


def check_configuration(facts: Facts, spec: ClusterSpec) -> Told:  # noqa: ARG001
    """What works, but is not as it should be."""
    found = warnings(spec)
    yield from (("warn", text, "") for text in found)
    if not found:
        yield "ok", "nothing to be said against it", ""


def check_namespace(facts: Facts, spec: ClusterSpec) -> Told:
    """It exists, and admits what the pods ask for."""
    if "namespaces" in facts.unread:
        yield "skipped", "namespaces may not be read", ""
        return
    if facts.namespace is None:
        fix = f"kubectl create namespace {spec.namespace}"
        yield "fail", f"namespace {spec.namespace} does not exist", fix
        return
    level = labels(facts.namespace).get("pod-security.kubernetes.io/enforce", "privileged")
    wants = [what for what, needed in _privileges(spec).items() if needed]
    if level != "privileged" and wants:
        fix = "use a namespace that enforces `privileged`, or leave these out"
        yield "fail", f"pod security {level} forbids {' and '.join(wants)}", fix
    else:
        yield "ok", f"namespace {spec.namespace} enforces pod security {level}", ""


def _privileges(spec: ClusterSpec) -> dict[str, bool]:
    return {
        "network.host_network": spec.network.host_network,
        "host paths": bool(spec.storage.model.host_path or spec.storage.shard_cache_host_path),
        "IPC_LOCK for RDMA": spec.network.rdma_resource is not None,
    }


def check_rights(facts: Facts, spec: ClusterSpec) -> Told:
    """Every verb that the commands use."""
    if facts.denied:
        fix = "ask for a Role with these verbs: `gangway cluster role` prints it"
        yield "fail", f"these credentials may not, in {spec.namespace}: {', '.join(facts.denied)}", fix
    else:
        yield "ok", "all verbs that `gangway cluster` needs are allowed", ""
    if facts.denied_to_drain:
        told = f"these credentials may not {', '.join(facts.denied_to_drain)}: `down` cuts off requests that run"
        yield "warn", told, "ask for a Role with these verbs: `gangway cluster role` prints it"


def check_definitions(facts: Facts, spec: ClusterSpec) -> Told:  # noqa: ARG001
    """KubeRay's resources are served as v1."""
    if "customresourcedefinitions" in facts.unread:
        yield "skipped", "custom resource definitions may not be read", ""
        return
    fix = INSTALL
    for name in RAY_DEFINITIONS:
        found = facts.definitions.get(name)
        served = [row["name"] for row in (found or {}).get("spec", {}).get("versions", []) if row.get("served")]
        if "v1" not in served:
            yield "fail", f"{name} is not served as ray.io/v1", fix
        else:
            yield "ok", f"{name} is served as ray.io/v1", ""


def check_queue(facts: Facts, spec: ClusterSpec) -> Told:
    """The queue is there and open; the priority class too."""
    kind = next(iter(QUEUES.get(spec.gang.scheduler, ())), None)
    if kind is None or spec.gang.queue is None:
        yield "skipped", "no queue is asked for", ""
    elif kind.plural in facts.unread:
        yield "skipped", f"{kind.full_name} may not be read", ""
    elif facts.queue is None:
        yield "fail", f"there is no {kind.name} {spec.gang.queue}", "create it or change gang.queue"
    elif status(facts.queue).get("state", "Open") != "Open" or _inactive(facts.queue):
        yield "fail", f"{kind.name} {spec.gang.queue} takes no work now", "open it, or change gang.queue"
    else:
        yield "ok", f"{kind.name} {spec.gang.queue} takes work", ""
    for short in shortages(facts.limits_of_queue, asked_for(spec)):
        yield "fail", short, "raise what the queue allows, or choose another in gang.queue"
    if spec.gang.priority_class and spec.gang.scheduler != "kueue" and facts.priority_class is None:
        yield "fail", f"there is no PriorityClass {spec.gang.priority_class}", "create it or change gang.priority_class"


def _inactive(queue: Manifest) -> bool:
    return any(row["type"] == "Active" and row["status"] != "True" for row in status(queue).get("conditions") or [])


def check_nodes(facts: Facts, spec: ClusterSpec) -> Told:
    """Enough nodes fit one pod each, and those are alike."""
    if "nodes" in facts.unread:
        yield "skipped", "nodes may not be read", ""
        return
    gang = gang_of(spec)
    rooms = room(gang, facts.nodes, facts.pods)
    if not rooms:
        yield "fail", f"there are no nodes at all, {gang.size} are needed", "add nodes"
        return
    if gang.gpus_per_node and not any(row.gpus for row in rooms):
        yield "fail", f"no node has {GPU}", "install the NVIDIA GPU operator"
        return
    fitting = [row for row in rooms if row.fits]
    seen = "; ".join(str(row) for row in rooms if row.gpus or not gang.gpus_per_node)
    if len(fitting) < gang.pods:
        yield "fail", f"{len(fitting)} nodes fit, {gang.size} are needed: {seen}", "free, uncordon or add nodes"
    else:
        yield "ok", f"{len(fitting)} nodes fit, {gang.size} are needed: {seen}", ""
    yield from _likeness(fitting, facts, spec)


LIKENESS = {
    "nvidia.com/gpu.product": "GPU products",
    "nvidia.com/gpu.memory": "GPU memory sizes",
    "nvidia.com/cuda.driver.major": "driver versions",
}


def _likeness(fitting: list[NodeRoom], facts: Facts, spec: ClusterSpec) -> Told:
    if not spec.nodes.gpus_per_node:
        return
    names = {row.name for row in fitting}
    found = [labels(node) for node in facts.nodes if node["metadata"]["name"] in names]
    for key, words in LIKENESS.items():
        values = {row.get(key, "no label") for row in found}
        if len(values) > 1:
            yield "warn", f"the nodes that fit have different {words}: {', '.join(sorted(values))}", "set nodes.product"
    if any(row.get("nvidia.com/mig.strategy") == "mixed" or "-MIG-" in row.get(GPU + ".product", "") for row in found):
        yield "fail", "GPUs are split by MIG, which NCCL cannot join", "switch MIG off on these nodes"
    if any(row.get("nvidia.com/gpu-driver-upgrade-state", "upgrade-done") != "upgrade-done" for row in found):
        yield "warn", "a GPU driver is being upgraded, which will drain a node", "wait for it to end"


def check_network(facts: Facts, spec: ClusterSpec) -> Told:
    """RDMA resources and secondary networks."""
    wanted = spec.network.rdma_resource
    if wanted is None and not spec.network.attachments:
        yield "skipped", "neither RDMA nor a secondary network is asked for", ""
    if wanted is not None and "nodes" not in facts.unread:
        have = [n["metadata"]["name"] for n in facts.nodes if _allocatable(n, wanted) >= spec.network.rdma_count]
        level: Level = "ok" if len(have) >= spec.nodes.pods else "fail"
        fix = "" if level == "ok" else "see what the device plugin offers: kubectl get nodes -o yaml"
        yield level, f"{len(have)} nodes offer {spec.network.rdma_count} {wanted}", fix
    for name, found in facts.attachments.items():
        if found is None:
            yield "fail", f"there is no NetworkAttachmentDefinition {name}", "create it or change network.attachments"
        else:
            yield "ok", f"NetworkAttachmentDefinition {name} exists", ""


def _allocatable(node: Manifest, resource: str) -> int:
    return int(parse_quantity(str(status(node).get("allocatable", {}).get(resource, "0"))))


def check_objects(facts: Facts, spec: ClusterSpec) -> Told:
    """Secrets, claim and runtime class that the pods name."""
    for name, found in facts.secrets.items():
        if "secrets" in facts.unread:
            yield "skipped", f"Secret {name} may not be read", ""
        elif found is None:
            yield "fail", f"there is no Secret {name} in {spec.namespace}", "kubectl create secret"
        else:
            yield "ok", f"Secret {name} exists", ""
    yield from _claim(facts, spec)
    if spec.nodes.runtime_class and facts.runtime_class is None and "runtimeclasses" not in facts.unread:
        yield "fail", f"there is no RuntimeClass {spec.nodes.runtime_class}", "change nodes.runtime_class"


def _claim(facts: Facts, spec: ClusterSpec) -> Told:
    name = spec.storage.model.claim
    if name is None or "persistentvolumeclaims" in facts.unread:
        return
    if facts.claim is None:
        yield "fail", f"there is no PersistentVolumeClaim {name}", "create it with the model on it"
        return
    modes = set(facts.claim["spec"].get("accessModes", []))
    if not modes & SHARED_MODES:
        yield "fail", f"claim {name} is {', '.join(modes)}: only one node can mount it", "use ReadOnlyMany"
    elif status(facts.claim).get("phase") != "Bound":
        yield _unbound(facts, name)
    else:
        yield "ok", f"claim {name} is bound, {', '.join(sorted(modes))}", ""


def _unbound(facts: Facts, name: str) -> tuple[Level, str, str]:
    phase, used = status(facts.claim).get("phase", "not bound"), storage_class_of(facts.claim)
    if used and facts.storage_class is None and "storageclasses" not in facts.unread:
        return "fail", f"claim {name} is {phase}: there is no StorageClass {used}", "name one that there is"
    if (facts.storage_class or {}).get("volumeBindingMode") == "WaitForFirstConsumer":
        return "warn", f"claim {name} is {phase}: StorageClass {used} binds it to its first pod's node", ""
    return "warn", f"claim {name} is {phase}", "see `kubectl describe` of it: it is bound by a provisioner, or never"


def check_limits(facts: Facts, spec: ClusterSpec) -> Told:
    """No LimitRange forbids a pod of this size."""
    if "limitranges" in facts.unread or not facts.limits:
        yield "skipped", "no LimitRange is to be seen", ""
    for found in facts.limits:
        name = found["metadata"]["name"]
        rows = [row for row in found["spec"].get("limits") or [] if row.get("type") in ("Container", "Pod")]
        over = [text for row in rows for text in _over(row.get("max") or {}, spec)]
        yield from (("fail", f"LimitRange {name} allows {text}", "raise it, or lower `resources`") for text in over)
        if not over:
            yield "ok", f"LimitRange {name} allows pods of this size", ""


def _over(highest: dict[str, str], spec: ClusterSpec) -> list[str]:
    """What the pods ask for beyond the highest amounts, in the words that follow "allows"."""
    wanted = [
        (role, resource, getattr(getattr(spec.resources, role), resource))
        for role in ("worker", "head")
        for resource in ("cpu", "memory")
    ]
    return [
        f"{highest[resource]} of {resource}, and the {role} asks for {amount}"
        for role, resource, amount in wanted
        if resource in highest and parse_quantity(str(highest[resource])) < parse_quantity(amount)
    ]


def check_quota(facts: Facts, spec: ClusterSpec) -> Told:
    """The gang's GPUs, CPUs and memory fit the namespace's quotas."""
    if "resourcequotas" in facts.unread or not facts.quotas:
        yield "skipped", "no ResourceQuota is to be seen", ""
        return
    for quota in facts.quotas:
        hard, used = status(quota).get("hard", {}), status(quota).get("used", {})
        for resource, wanted in _wanted(spec).items():
            if resource in hard:
                left = parse_quantity(str(hard[resource])) - parse_quantity(str(used.get(resource, "0")))
                name = quota["metadata"]["name"]
                short = f"quota {name} leaves {float(left):g} of {resource}, {float(wanted):g} are needed"
                yield ("fail", short, "raise it or free some") if left < wanted else ("ok", short, "")


def _wanted(spec: ClusterSpec) -> dict[str, float]:
    sums = {name: float(amount) for name, amount in asked_for(spec).items()}
    gpus = {f"requests.{GPU}": sums.pop(GPU, 0.0)}
    return sums | gpus | {f"{side}.{name}": sums[name] for side in ("requests", "limits") for name in ("cpu", "memory")}


CHECKS: dict[str, Check] = {
    "server": check_server,
    "config": check_configuration,
    "namespace": check_namespace,
    "rights": check_rights,
    "definitions": check_definitions,
    "operator": check_operator,
    "queue": check_queue,
    "nodes": check_nodes,
    "network": check_network,
    "objects": check_objects,
    "quota": check_quota,
    "limits": check_limits,
}


def examine(facts: Facts, spec: ClusterSpec) -> list[Finding]:
    """The whole table, in the order of `CHECKS`."""
    return [
        Finding(check=name, level=level, text=text, fix=fix)
        for name, check in CHECKS.items()
        for level, text, fix in check(facts, spec)
    ]

"""What is known of a gang at one moment, and small questions to it. Pure: `observe` fills it, `diagnosis` reads it."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from cluster.config.spec import ClusterSpec
from cluster.k8s.kinds import Manifest
from cluster.k8s.names import COMPONENT, GPU, HEAD, HOST_INDEX, WORKER
from cluster.k8s.quantity import parse_quantity
from cluster.manifests.environment import STOP_MARGIN_S

KUBERAY_POLL_S = 10.0
"""KubeRay asks every few seconds how a job stands, and writes it down then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gang:
    """What is wanted: the part of a cluster configuration that watching needs."""

    name: str
    namespace: str
    kind: str = "job"
    port: int = 8000
    scheduler: str = "none"
    nodes: int = 2
    queue: str | None = None
    spares: int = 0
    gpus_per_node: int = 8
    cpu: str = "0"
    """Of each pod with ranks."""
    memory: str = "0"
    """Of each pod with ranks."""
    total: tuple[tuple[str, Fraction], ...] = ()
    """What all pods ask for together, the head's too, by resource."""
    product: str | None = None
    selector: tuple[tuple[str, str], ...] = ()
    tolerations: tuple[Manifest, ...] = ()
    ready_s: float = 1800.0
    delete_s: float = 300.0
    node_lost_s: float = 30.0
    drain_s: float = 55.0
    backoff_limit: int = 3

    @property
    def size(self) -> str:
        """As a sentence names it."""
        gpus = f" x {self.gpus_per_node} GPUs" if self.gpus_per_node else f" x {self.cpu} CPUs and {self.memory}"
        spares = f" and {self.spares} more as spares" if self.spares else ""
        return f"{self.nodes} nodes{spares}{gpus}{f' of {self.product}' if self.product else ''}"

    @property
    def pods(self) -> int:
        """Pods that can hold ranks."""
        return self.nodes + self.spares


def gang_of(spec: ClusterSpec) -> Gang:
    """The gang that a configuration describes."""
    tolerations = [toleration.model_dump(exclude_none=True) for toleration in spec.nodes.tolerations]
    if spec.nodes.gpus_per_node:
        tolerations.append({"key": GPU, "operator": "Exists", "effect": "NoSchedule"})
    return Gang(
        name=spec.name,
        namespace=spec.namespace,
        kind=spec.ray.kind,
        port=spec.serving.http.port,
        scheduler=spec.gang.scheduler,
        nodes=spec.nodes.count,
        queue=spec.gang.queue,
        spares=spec.nodes.spares,
        gpus_per_node=spec.nodes.gpus_per_node,
        cpu=spec.resources.worker.cpu,
        memory=spec.resources.worker.memory,
        total=tuple(asked_for(spec).items()),
        product=spec.nodes.product,
        selector=tuple(sorted(spec.nodes.selector.items())),
        tolerations=tuple(tolerations),
        ready_s=spec.timeouts.ready_s,
        delete_s=spec.timeouts.delete_s,
        node_lost_s=spec.timeouts.node_lost_s,
        drain_s=spec.serving.fault.drain_timeout_s + STOP_MARGIN_S + KUBERAY_POLL_S,
        backoff_limit=spec.ray.backoff_limit,
    )


def asked_for(spec: ClusterSpec) -> dict[str, Fraction]:
    """What all pods of a gang ask for together, by resource."""
    worker, head, count = spec.resources.worker, spec.resources.head, spec.nodes.pods
    sums = {
        "cpu": parse_quantity(worker.cpu) * count + parse_quantity(head.cpu),
        "memory": parse_quantity(worker.memory) * count + parse_quantity(head.memory),
        "pods": Fraction(count + 1),
    }
    return sums | ({GPU: Fraction(count * spec.nodes.gpus_per_node)} if spec.nodes.gpus_per_node else {})


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """What `/readyz` answered through the Service: 0 stands for no answer."""

    status: int = 0
    text: str = ""

    @property
    def ready(self) -> bool:
        return self.status == 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The objects of one gang. Empty fields are objects that are not there or may not be read."""

    gang: Gang
    job: Manifest | None = None
    """The RayJob; of a standing cluster the job that Ray tells of, in its form."""
    cluster: Manifest | None = None
    pods: tuple[Manifest, ...] = ()
    events: tuple[Manifest, ...] = ()
    """About the objects above, oldest first."""
    fresh: frozenset[str] = frozenset()
    """Keys of the events that came since the watching began."""
    nodes: tuple[Manifest, ...] = ()
    """Only looked up while pods wait for a node."""
    homes: tuple[Manifest, ...] = ()
    """Nodes of those pods that may have been cut off."""
    neighbours: tuple[Manifest, ...] = ()
    """All pods of the Kubernetes cluster, looked up with `nodes`."""
    queue: Manifest | None = None
    """What limits the gang's queue, looked up while pods wait for a node or the job is held back."""
    operators: tuple[Manifest, ...] = ()
    """KubeRay's Deployments, looked up while nobody has written a status."""
    health: Health = Health()

    @property
    def top(self) -> Manifest | None:
        """The object that was applied."""
        return self.job if self.gang.kind == "job" else self.cluster

    @property
    def workers(self) -> tuple[Manifest, ...]:
        """Pods with ranks and spares, by host index."""
        ranks = [pod for pod in self.pods if labels(pod).get("ray.io/node-type") == WORKER]
        return tuple(sorted(ranks, key=lambda pod: (int(labels(pod).get(HOST_INDEX, "0")), pod["metadata"]["name"])))

    @property
    def head(self) -> Manifest | None:
        return next((pod for pod in self.pods if labels(pod).get("ray.io/node-type") == HEAD), None)

    def reasons(self, *names: str) -> list[Manifest]:
        """Events with one of these reasons."""
        return [event for event in self.events if event.get("reason") in names]


def labels(obj: Manifest) -> dict[str, str]:
    """An object's labels, {} where it has none."""
    return obj["metadata"].get("labels") or {}


def status(obj: Manifest | None) -> dict[str, Any]:
    """An object's status, {} where there is none yet."""
    return (obj or {}).get("status") or {}


def condition(obj: Manifest | None, kind: str) -> Manifest:
    """One condition of an object, {} where it has none of that type."""
    return next((row for row in status(obj).get("conditions") or [] if row["type"] == kind), {})


def is_true(obj: Manifest | None, kind: str) -> bool:
    """Whether a condition is True."""
    return condition(obj, kind).get("status") == "True"


def container(pod: Manifest) -> Manifest:
    """The status of a pod's first container, the Ray one; {} before the kubelet has told."""
    return next(iter(status(pod).get("containerStatuses") or []), {})


def title(pod: Manifest) -> str:
    """A pod as a sentence names it: its rank's host index, if it has one, and its node."""
    meta, index = pod["metadata"], labels(pod).get(HOST_INDEX)
    which = "head" if labels(pod).get(COMPONENT) == HEAD else f"host {index}" if index is not None else ""
    where = f" on node {pod['spec']['nodeName']}" if pod["spec"].get("nodeName") else ""
    return f"pod {meta['name']}{f' ({which})' if which else ''}{where}"


def event_key(event: Manifest) -> str:
    """Differs when an event happens again."""
    return f"{event['metadata'].get('uid', event['metadata']['name'])}/{event.get('count', 1)}"

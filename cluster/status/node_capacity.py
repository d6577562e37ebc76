"""What room nodes have for ranks: free GPUs, CPUs and memory, and what keeps a pod away. Pure; `doctor` and `diagnosis`
share it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from cluster.k8s.kinds import Manifest
from cluster.k8s.names import GPU, INSTANCE
from cluster.k8s.quantity import parse_quantity
from cluster.status.queues import shown
from cluster.status.snapshot import Gang, is_true, labels, status

PRODUCT_LABEL = f"{GPU}.product"
ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """One node, seen by one gang."""

    name: str
    gpus: int
    """Allocatable."""
    free: int
    holders: tuple[tuple[str, int], ...]
    """Pods that hold the others, as (namespace/name, GPUs)."""
    obstacle: str | None
    """Why no rank can be placed here, whatever is free."""
    amounts: str
    """CPUs and memory that are free, in words: of a gang without GPUs, or where there is too little for one with."""
    fits: bool

    def __str__(self) -> str:
        if self.obstacle:
            return f"node {self.name} {self.obstacle}"
        held = ", ".join(f"{name} holds {count}" for name, count in self.holders)
        gpus = f"{self.free} of {self.gpus} GPUs" if self.gpus or not self.amounts else ""
        told = " and ".join(part for part in (gpus, self.amounts) if part)
        return f"node {self.name} has {told} free{f' ({held})' if held else ''}"


def room(gang: Gang, nodes: Iterable[Manifest], pods: Sequence[Manifest]) -> list[NodeRoom]:
    """Every node's room for one pod of the gang, whose own pods do not count as in the way."""
    return [_room_of(gang, node, pods) for node in sorted(nodes, key=lambda node: str(node["metadata"]["name"]))]


def _room_of(gang: Gang, node: Manifest, pods: Sequence[Manifest]) -> NodeRoom:
    name = node["metadata"]["name"]
    there = [pod for pod in pods if pod["spec"].get("nodeName") == name and status(pod).get("phase") not in ENDED]
    strangers = [pod for pod in there if labels(pod).get(INSTANCE) != gang.name]
    holders = tuple((full_name(pod), count) for pod in strangers if (count := gpus_of(pod)))
    total, obstacle = int(_allocatable(node, GPU)), obstacle_of(gang, node)
    free = total - sum(count for _, count in holders)
    left = {key: _allocatable(node, key) - sum(_asked(pod, key) for pod in strangers) for key in ("cpu", "memory")}
    short = left["cpu"] < parse_quantity(gang.cpu) or left["memory"] < parse_quantity(gang.memory)
    told = not gang.gpus_per_node or short
    amounts = f"{shown(left['cpu'])} CPUs and {shown(left['memory'])}" if told else ""
    fits = obstacle is None and free >= gang.gpus_per_node and not short
    return NodeRoom(name, total if gang.gpus_per_node else 0, free, holders, obstacle, amounts, fits)


def _allocatable(node: Manifest, resource: str) -> Fraction:
    return parse_quantity(str(status(node).get("allocatable", {}).get(resource, "0")))


def _asked(pod: Manifest, resource: str) -> Fraction:
    """What a pod's containers ask for; limits stand in for absent requests."""
    rows = (c.get("resources") or {} for c in pod["spec"].get("containers", []))
    each = ((row.get("limits") or {}) | (row.get("requests") or {}) for row in rows)
    return sum((parse_quantity(str(one.get(resource, "0"))) for one in each), Fraction())


def full_name(obj: Manifest) -> str:
    """As in `namespace/name`."""
    return f"{obj['metadata'].get('namespace', '')}/{obj['metadata']['name']}"


def gpus_of(pod: Manifest) -> int:
    """GPUs that a pod holds: of extended resources requests equal limits."""
    limits = (c.get("resources", {}).get("limits", {}) for c in pod["spec"].get("containers", []))
    return int(sum(parse_quantity(str(row.get(GPU, "0"))) for row in limits))


def obstacle_of(gang: Gang, node: Manifest) -> str | None:
    """Why a node can hold no rank, in the words that follow its name; None where it can."""
    if node["spec"].get("unschedulable"):
        return "is cordoned (kubectl uncordon it)"
    if not is_true(node, "Ready"):
        return "is not Ready"
    for taint in node["spec"].get("taints") or []:
        if taint.get("effect") != "PreferNoSchedule" and not any(tolerates(row, taint) for row in gang.tolerations):
            return f"has the taint {taint['key']}={taint.get('value', '')}:{taint['effect']}, which is not tolerated"
    product = labels(node).get(PRODUCT_LABEL)
    if gang.product and product != gang.product:
        return f"has {product or 'no GPU label'}, not {gang.product}"
    for key, value in gang.selector:
        if labels(node).get(key) != value:
            return f"lacks the label {key}={value}"
    return None


def tolerates(toleration: Manifest, taint: Manifest) -> bool:
    """Kubernetes' rule for one toleration and one taint."""
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("key") not in (None, "", taint["key"]):
        return False
    return toleration.get("operator") == "Exists" or toleration.get("value", "") == taint.get("value", "")

"""A scheduler: puts pending pods on nodes, one by one or a gang at once.

Looks at node selectors, taints, cordons, free resources and required anti-affinity on the host name; nothing else.
"""

import re
from typing import Any

from tests.kube.clock import ManualClock
from tests.kube.scene import condition, set_status
from tests.kube.store import Store

Object = dict[str, Any]

UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity(text: Any) -> float:
    number, unit = re.fullmatch(r"([\d.]+)([a-zA-Z]*)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def requests(pod: Object) -> dict[str, float]:
    """What a pod asks for, its limits standing in for absent requests."""
    total: dict[str, float] = {}
    for container in pod["spec"]["containers"]:
        asked = container.get("resources", {})
        for name, text in {**asked.get("limits", {}), **asked.get("requests", {})}.items():
            total[name] = total.get(name, 0) + quantity(text)
    return total


def place_all(store: Store, clock: ManualClock) -> None:
    """One round: each gang that fits as a whole, then each pod of its own."""
    groups: dict[str, list[Object]] = {}
    for pod in store.select("pods"):
        if "nodeName" in pod["spec"] or pod["status"].get("phase") != "Pending":
            continue
        ganged = pod["spec"].get("schedulerName", "default-scheduler") != "default-scheduler"
        key = pod["metadata"]["labels"]["ray.io/cluster"] if ganged else pod["metadata"]["uid"]
        groups.setdefault(key, []).append(pod)
    for pods in groups.values():
        _place(store, clock, pods)


def _place(store: Store, clock: ManualClock, pods: list[Object]) -> None:
    chosen: list[tuple[Object, str]] = []
    for pod in pods:
        refusals: dict[str, int] = {}
        node = next((n for n in store.select("nodes") if not _refusal(store, pod, n, chosen, refusals)), None)
        if node is None:
            told = ", ".join(f"{count} {reason}" for reason, count in sorted(refusals.items()))
            _tell_pending(store, clock, pods, f"0/{len(store.select('nodes'))} nodes are available: {told}.")
            return
        chosen.append((pod, node["metadata"]["name"]))
    for pod, name in chosen:
        _bind(store, clock, pod, name)


def _bind(store: Store, clock: ManualClock, pod: Object, node: str) -> None:
    meta = pod["metadata"]

    def bound(held: Object) -> Object:
        return {**held, "spec": {**held["spec"], "nodeName": node}}

    pod = store.change("pods", meta["name"], meta["namespace"], bound)
    set_status(store, pod, "pods", conditions=condition(pod, "PodScheduled", "True", "", "", clock.stamp()))


def _tell_pending(store: Store, clock: ManualClock, pods: list[Object], message: str) -> None:
    for pod in pods:
        rows = condition(pod, "PodScheduled", "False", "Unschedulable", message, clock.stamp())
        set_status(store, pod, "pods", conditions=rows)


def _refusal(
    store: Store, pod: Object, node: Object, chosen: list[tuple[Object, str]], counted: dict[str, int]
) -> str | None:
    reason = _why_not(store, pod, node, chosen)
    if reason:
        counted[reason] = counted.get(reason, 0) + 1
    return reason


def _why_not(store: Store, pod: Object, node: Object, chosen: list[tuple[Object, str]]) -> str | None:
    name, labels = node["metadata"]["name"], node["metadata"]["labels"]
    if node["spec"].get("unschedulable"):
        return "node(s) were unschedulable"
    for taint in node["spec"].get("taints", []):
        if not any(_tolerates(toleration, taint) for toleration in pod["spec"].get("tolerations", [])):
            return f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
    if not (pod["spec"].get("nodeSelector") or {}).items() <= labels.items():
        return "node(s) didn't match Pod's node affinity/selector"
    there = [other for other in store.select("pods") if other["spec"].get("nodeName") == name and _lives(other)]
    there += [other for other, where in chosen if where == name]
    if _repelled(pod, there):
        return "node(s) didn't match pod anti-affinity rules"
    for resource, wanted in requests(pod).items():
        used = sum(requests(other).get(resource, 0) for other in there)
        if quantity(node["status"]["allocatable"].get(resource, 0)) - used < wanted:
            return f"Insufficient {resource}"
    return None


def _lives(pod: Object) -> bool:
    return pod["status"].get("phase") not in ("Succeeded", "Failed")


def _tolerates(toleration: Object, taint: Object) -> bool:
    same = toleration.get("key") in (None, taint["key"])
    exists = toleration.get("operator") == "Exists" or toleration.get("value", "") == taint.get("value", "")
    return same and exists and toleration.get("effect") in (None, "", taint["effect"])


def _repelled(pod: Object, others: list[Object]) -> bool:
    rules = pod["spec"].get("affinity", {}).get("podAntiAffinity", {})
    for rule in rules.get("requiredDuringSchedulingIgnoredDuringExecution", []):
        wanted = rule.get("labelSelector", {}).get("matchLabels", {})
        if any(wanted.items() <= other["metadata"].get("labels", {}).items() for other in others):
            return True
    return False

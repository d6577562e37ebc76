"""Kubernetes' budgets of disruption: the controller that counts, and the eviction that asks.

As in 1.37 (`pkg/controller/disruption`, `registry/core/pod/storage/eviction.go`), for `minAvailable` as a number.
"""

from typing import Any

from tests.kube.errors import StatusError
from tests.kube.scene import condition_is, set_status
from tests.kube.store import Store

Object = dict[str, Any]
BUDGETS = "poddisruptionbudgets.policy"


def count_all(store: Store) -> None:
    """What the controller writes down: how many pods are healthy, and how many more may go."""
    for budget in store.select(BUDGETS):
        pods = [pod for pod in store.select("pods", budget["metadata"]["namespace"]) if covers(budget, pod)]
        living = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        healthy, desired = sum(condition_is(pod, "Ready") for pod in living), budget["spec"]["minAvailable"]
        told = {
            "expectedPods": len(pods),
            "currentHealthy": healthy,
            "desiredHealthy": desired,
            "disruptionsAllowed": max(0, healthy - desired) if pods else 0,
            "observedGeneration": budget["metadata"]["generation"],
        }
        if budget.get("status") != told:
            set_status(store, budget, BUDGETS, **told)


def covers(budget: Object, pod: Object) -> bool:
    wanted = budget["spec"]["selector"]["matchLabels"].items()
    return bool(wanted <= pod["metadata"].get("labels", {}).items())


def evict(store: Store, name: str, namespace: str) -> Object:
    """What `kubectl drain` asks for each pod: delete it, unless a budget says no (429, to be asked again)."""
    with store.lock:
        pod = store.get("pods", name, namespace)
        budgets = [budget for budget in store.select(BUDGETS, namespace) if covers(budget, pod)]
        ended = (
            pod["status"].get("phase") in ("Succeeded", "Failed", "Pending") or "deletionTimestamp" in pod["metadata"]
        )
        if len(budgets) > 1 and not ended:
            text = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
            raise StatusError(500, "InternalError", text)
        if budgets and not ended:
            _spend(store, budgets[0], pod)
        store.delete("pods", name, namespace)
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def _spend(store: Store, budget: Object, pod: Object) -> None:
    """Take one disruption, or raise. A pod that is not ready costs none where the budget is kept without it."""
    status, name = budget.get("status", {}), budget["metadata"]["name"]
    if status.get("observedGeneration", 0) < budget["metadata"]["generation"]:
        raise _refused(f"The disruption budget {name} is still being processed by the server.", retry_after_s=10)
    kept = status["currentHealthy"] >= status["desiredHealthy"] > 0
    if not condition_is(pod, "Ready") and (kept or _always(budget)):
        return
    if status["disruptionsAllowed"] <= 0:
        needs = f"needs {status['desiredHealthy']} healthy pods and has {status['currentHealthy']} currently"
        raise _refused(f"The disruption budget {name} {needs}")
    set_status(store, budget, BUDGETS, disruptionsAllowed=status["disruptionsAllowed"] - 1)


def _always(budget: Object) -> bool:
    return bool(budget["spec"].get("unhealthyPodEvictionPolicy") == "AlwaysAllow")


def _refused(why: str, retry_after_s: int | None = None) -> StatusError:
    cause = {"reason": "DisruptionBudget", "message": why}
    text = "Cannot evict pod as it would violate the pod's disruption budget."
    return StatusError(429, "TooManyRequests", text, causes=[cause], retry_after_s=retry_after_s)

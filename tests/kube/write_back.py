"""What controllers make of a RayJob when they write it back as a whole: KubeRay's Go types, and Kueue's admission."""

import copy
from collections.abc import Iterator
from typing import Any

from tests.kube.scheduler import quantity

Object = dict[str, Any]
JOB_FINALIZER = "ray.io/rayjob-finalizer"


def through_go(value: Any, path: tuple[str, ...] = ()) -> Any:
    """Read into Go's types and written: quantities in their canonical form, empty texts gone."""
    if isinstance(value, dict):
        return {key: through_go(item, (*path, key)) for key, item in value.items() if item != ""}
    if isinstance(value, list):
        return [through_go(item, path) for item in value]
    if path[-1:] == ("sizeLimit",) or path[-2:-1] in {("limits",), ("requests",)}:
        return _canonical(str(value))
    return value


def _canonical(text: str) -> str:
    """The largest unit of its kind that leaves a whole number."""
    amount, binary = quantity(text), text.endswith("i")
    if amount != int(amount):
        return f"{amount * 1000:.0f}m"
    steps = [(2 ** (10 * power), f"{unit}i") for power, unit in ((4, "T"), (3, "G"), (2, "M"), (1, "K"))]
    fits = ((size, unit) for size, unit in steps if binary and amount and amount % size == 0)
    size, unit = next(fits, (1, ""))
    return f"{int(amount // size)}{unit}"


def finalized(job: Object) -> Object:
    """KubeRay's first write: its finalizer, and with it the whole object, which has a `scaleStrategy` in each group."""
    written: Object = {**job, "spec": through_go(copy.deepcopy(job["spec"]))}
    for group in written["spec"].get("rayClusterSpec", {}).get("workerGroupSpecs", []):
        group.setdefault("scaleStrategy", {})
    finalizers = [*written["metadata"].get("finalizers", []), JOB_FINALIZER]
    return {**written, "metadata": {**written["metadata"], "finalizers": finalizers}}


def released(job: Object) -> Object:
    """Without KubeRay's finalizer."""
    kept = [name for name in job["metadata"].get("finalizers", []) if name != JOB_FINALIZER]
    return {**job, "metadata": {**job["metadata"], "finalizers": kept}}


def admitted(job: Object) -> Object:
    """Kueue lets it go, with what its flavor puts into every pod."""
    written = copy.deepcopy(job)
    written["spec"]["suspend"] = False
    for template in _templates(written["spec"]["rayClusterSpec"]):
        template.setdefault("metadata", {}).setdefault("labels", {})["kueue.x-k8s.io/podset"] = "ranks"
        template["spec"].setdefault("nodeSelector", {})["kubernetes.io/os"] = "linux"
        template["spec"].setdefault("tolerations", []).append({"key": "flavor", "operator": "Exists"})
    return written


def _templates(cluster: Object) -> Iterator[Object]:
    yield cluster["headGroupSpec"]["template"]
    yield from (group["template"] for group in cluster["workerGroupSpecs"])

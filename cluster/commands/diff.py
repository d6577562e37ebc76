"""What an apply would change, told field by field. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from cluster.commands.ownership import Applicable
from cluster.k8s.kinds import RAY_CLUSTER, RAY_JOB, Manifest
from cluster.k8s.names import LAST_APPLIED
from cluster.status.snapshot import is_true, status

UNTOLD = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink")
RAY_KINDS = (RAY_JOB.name, RAY_CLUSTER.name)
MOST_FIELDS = 12


@dataclass(frozen=True, slots=True)
class Alteration:
    """One document and what applying it does."""

    kind: str
    name: str
    verb: Literal["create", "change", "keep"]
    fields: tuple[str, ...] = ()
    """As in `spec.rayVersion: 2.59.0 -> 2.60.0`."""
    live_template: bool = False
    """Whether it alters pods that run: KubeRay ignores that or answers it by killing them."""
    sent: Applicable | None = None
    """What to apply; None where nothing is."""

    @property
    def recreatable(self) -> bool:
        """Whether it makes pods and is there already, so that it can be ended and made again."""
        return self.kind in RAY_KINDS and self.verb != "create"

    def __str__(self) -> str:
        more = len(self.fields) - MOST_FIELDS
        told = "".join(f"\n    {field}" for field in self.fields[:MOST_FIELDS])
        past = {"create": "created", "change": "changed", "keep": "unchanged"}[self.verb]
        return f"{past} {self.kind} {self.name}{told}{f'{chr(10)}    and {more} more fields' if more > 0 else ''}"


def alteration(live: Manifest | None, after: Manifest, sent: Applicable | None = None) -> Alteration:
    """What becomes of a live object (None: there is none) that would be `after`, once `sent` is applied."""
    kind, name = after["kind"], after["metadata"]["name"]
    if live is None:
        return Alteration(kind, name, "create", sent=sent)
    fields = tuple(differences(_told(live), _told(after)))
    if not fields:
        return Alteration(kind, name, "keep")
    spec = any(field.startswith("spec.") for field in fields)
    return Alteration(kind, name, "change", fields, kind in RAY_KINDS and spec and not _held(live), sent)


def _held(live: Manifest) -> bool:
    """Whether it is suspended and has no pods: KubeRay makes them of what it says when it is let go."""
    if not live["spec"].get("suspend"):
        return False
    return is_true(live, "RayClusterSuspended") or (live["kind"] == "RayJob" and not status(live).get("rayClusterName"))


def _told(obj: Manifest) -> Manifest:
    """Without what the server and controllers write: status, bookkeeping, ours too, and Kueue's `suspend`."""
    meta = {key: value for key, value in obj["metadata"].items() if key not in UNTOLD}
    meta["annotations"] = {key: text for key, text in meta.get("annotations", {}).items() if key != LAST_APPLIED}
    spec = {key: value for key, value in obj.get("spec", {}).items() if key != "suspend"}
    return {**{k: v for k, v in obj.items() if k != "status"}, "metadata": meta, "spec": spec}


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Each leaf that differs, by its path."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{path}[{index}]")
    elif before != after:
        yield f"{path}: {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = "(none)" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

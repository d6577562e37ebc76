"""What an API server keeps: objects, versions, a log of changes to watch, finalizers and owners.

Every public method is atomic under one lock. Objects handed in and out are copies. Deleting a pod that runs only marks
it where there is a kubelet to end it (`ends_itself`); else it is removed at once.
"""

import copy
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tests.kube.apply import now, record_update, server_side_apply
from tests.kube.errors import StatusError, already_exists, bad_request, conflict, gone, invalid, not_found
from tests.kube.resources import BUILT_IN, Resource, custom_resources
from tests.kube.schema import pruned, unknown_fields, violations, with_defaults
from tests.kube.selectors import selects

Object = dict[str, Any]
Key = tuple[str, str, str]
Change = Callable[[Object], Object]
Admission = Callable[[str, Resource, Object], None]

NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
SERVER_OWNED = ("uid", "creationTimestamp", "resourceVersion", "generation", "deletionTimestamp", "managedFields")


@dataclass(frozen=True, kw_only=True)
class Write:
    """How a write is to be done: the query parameters that all writes share."""

    manager: str = "unknown"
    dry_run: bool = False
    validation: str = "Warn"
    """`fieldValidation`: Strict refuses unknown fields, the others drop them."""
    subresource: str = ""
    takes_fields: bool = True
    """Whether the writer comes to own what it changes; an apply has settled that before."""


PLAIN = Write()


@dataclass(frozen=True)
class Event:
    """One row of the log: ADDED, MODIFIED or DELETED, and the object as it was then."""

    version: int
    kind: str
    resource: Resource
    obj: Object


class Store:
    """All state of the fake server."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.version = 1
        self.oldest = 0
        """Watches from before this version are told 410."""
        self.log: list[Event] = []
        self.objects: dict[Key, Object] = {}
        self.admissions: list[Admission] = []
        """Called with (create or update, resource, object) before a write; raises `StatusError` to deny it."""
        self.ends_itself: Callable[[Object], bool] = lambda _: False
        """Whether somebody ends this pod and then calls `remove`."""
        self.table = {resource.full_name: resource for resource in BUILT_IN}
        for name in ("default", "kube-system"):
            self.create("namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def install(self, definition: Object) -> None:
        """Serve the custom resource that a definition describes."""
        for resource in custom_resources(definition):
            self.table[resource.full_name] = resource
        established = {"conditions": [{"type": "Established", "status": "True"}]}
        kept = {key: definition[key] for key in ("apiVersion", "kind", "spec")}
        metadata = {"name": definition["metadata"]["name"]}
        # The schema is most of a definition; the table has it, so the object keeps names and versions only.
        versions = [{k: v for k, v in row.items() if k != "schema"} for row in kept["spec"]["versions"]]
        kept = {**kept, "metadata": metadata, "spec": {**kept["spec"], "versions": versions}, "status": established}
        self.create("customresourcedefinitions.apiextensions.k8s.io", kept, keep_status=True)

    def resource(self, full_name: str) -> Resource:
        return self.table[full_name]

    # Reading.

    def get(self, full_name: str, name: str, namespace: str = "") -> Object:
        with self.lock:
            return copy.deepcopy(self._held(full_name, name, namespace))

    def find(self, full_name: str, name: str, namespace: str = "") -> Object | None:
        """As `get`, but None where there is no such object."""
        with self.lock:
            return copy.deepcopy(self.objects.get((full_name, namespace, name)))

    def select(self, full_name: str, namespace: str = "", labels: str = "", fields: str = "") -> list[Object]:
        """Objects of all namespaces where `namespace` is empty, ordered by namespace and name."""
        with self.lock:
            keys = sorted(k for k in self.objects if k[0] == full_name and namespace in ("", k[1]))
            return [copy.deepcopy(self.objects[key]) for key in keys if selects(self.objects[key], labels, fields)]

    def _held(self, full_name: str, name: str, namespace: str) -> Object:
        held = self.objects.get((full_name, namespace, name))
        if held is None:
            raise not_found(full_name, name)
        return held

    def events_after(self, version: int, timeout_s: float) -> list[Event]:
        """Changes after a version; waits for one. Raises 410 when the version is older than the log."""
        with self.changed:
            if version < self.oldest:
                raise gone(f"too old resource version: {version} ({self.oldest})")
            self.changed.wait_for(lambda: self.version > version, timeout_s)
            return [event for event in self.log if event.version > version]

    def compact(self) -> None:
        """Forget the log, as etcd does every few minutes: older watches get 410."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            self.log.clear()
            self.changed.notify_all()

    # Writing.

    def create(self, full_name: str, obj: Object, write: Write = PLAIN, *, keep_status: bool = False) -> Object:
        """Store a new object. `keep_status` is for tests that set a scene."""
        resource = self.table[full_name]
        with self.changed:
            fresh = self._named(resource, copy.deepcopy(obj))
            meta = fresh["metadata"]
            key = (full_name, meta.get("namespace", ""), meta["name"])
            if key in self.objects:
                raise already_exists(full_name, meta["name"])
            if meta.get("namespace") and ("namespaces", "", meta["namespace"]) not in self.objects:
                raise not_found("namespaces", meta["namespace"])
            if resource.status and not keep_status:
                fresh.pop("status", None)
            meta.pop("resourceVersion", None)
            meta.update(uid=str(uuid.uuid4()), creationTimestamp=now(), generation=1)
            return self._commit(resource, key, None, fresh, write)

    def _named(self, resource: Resource, obj: Object) -> Object:
        if (obj.get("kind"), obj.get("apiVersion")) != (resource.kind, resource.api_version):
            told = f"{obj.get('apiVersion')} {obj.get('kind')}"
            raise bad_request(f"the object is a {told}, the address is of a {resource.api_version} {resource.kind}")
        meta = obj.setdefault("metadata", {})
        if "name" not in meta and "generateName" in meta:
            meta["name"] = meta["generateName"] + uuid.uuid4().hex[:5]
        if not NAME.match(str(meta.get("name", ""))):
            text = f'Invalid value: "{meta.get("name", "")}": a lowercase RFC 1123 subdomain must consist of lower case'
            raise invalid(resource.kind, str(meta.get("name", "")), [("metadata.name", text)])
        if not resource.namespaced:
            meta.pop("namespace", None)
        return obj

    def change(self, full_name: str, name: str, namespace: str, change: Change, write: Write = PLAIN) -> Object:
        """Replace an object by what `change` makes of it. A `resourceVersion` that differs is a 409."""
        resource = self.table[full_name]
        with self.changed:
            before = self._held(full_name, name, namespace)
            after = self._named(resource, change(copy.deepcopy(before)))
            told = after["metadata"].get("resourceVersion")
            if told and told != before["metadata"]["resourceVersion"]:
                raise conflict(full_name, name)
            after = self._kept_apart(resource, before, after, write.subresource)
            return self._commit(resource, (full_name, namespace, name), before, after, write)

    def _kept_apart(self, resource: Resource, before: Object, after: Object, subresource: str) -> Object:
        """Status changes only through `/status`, everything else only past it; the server's own fields never."""
        if subresource == "status":
            after = {**copy.deepcopy(before), **({"status": after["status"]} if "status" in after else {})}
        elif resource.status:
            after.pop("status", None)
            after |= {"status": copy.deepcopy(before["status"])} if "status" in before else {}
        owned = {key: before["metadata"][key] for key in SERVER_OWNED if key in before["metadata"]}
        managed = after["metadata"].get("managedFields", owned.get("managedFields", []))
        after["metadata"] = {**after["metadata"], **copy.deepcopy(owned), "managedFields": managed}
        return after

    def apply(self, full_name: str, name: str, namespace: str, applied: Object, write: Write, *, force: bool) -> Object:
        """Server-side apply: creates what is not there."""
        resource = self.table[full_name]
        with self.changed:
            self._refuse_unknown(resource, applied, write)
            before = self.objects.get((full_name, namespace, name))
            meta = {"name": name, **({"namespace": namespace} if namespace else {})}
            start = before or {"apiVersion": applied["apiVersion"], "kind": applied["kind"], "metadata": meta}
            merged = server_side_apply(
                start, applied, resource.schema, manager=write.manager, force=force, subresource=write.subresource
            )
            write = replace(write, takes_fields=False)
            if before is None:
                return self.create(full_name, merged, write)
            return self.change(full_name, name, namespace, lambda _: merged, write)

    def _commit(self, resource: Resource, key: Key, before: Object | None, after: Object, write: Write) -> Object:
        after = self._admitted(resource, before, after, write)
        if write.takes_fields:
            record_update(before, after, resource.schema, manager=write.manager, subresource=write.subresource)
        if before is not None and _content(before) == _content(after):
            return copy.deepcopy(before)
        if before is not None and _spec(before) != _spec(after):
            after["metadata"]["generation"] = before["metadata"]["generation"] + 1
        if write.dry_run:
            after["metadata"].setdefault("resourceVersion", "")
            return after
        self._record("ADDED" if before is None else "MODIFIED", resource, key, after)
        if "deletionTimestamp" in after["metadata"] and not self._waits(resource, after):
            self._remove(resource, key)
        return copy.deepcopy(after)

    def _admitted(self, resource: Resource, before: Object | None, after: Object, write: Write) -> Object:
        self._refuse_unknown(resource, after, write)
        if resource.schema is not None:
            own: Object = {name: after[name] for name in ("apiVersion", "kind", "metadata") if name in after}
            rest = {name: value for name, value in after.items() if name not in own}
            after = {**own, **with_defaults(pruned(rest, resource.schema), resource.schema)}
            causes = violations({**after, "metadata": {}}, resource.schema)
            if causes:
                raise invalid(resource.kind, after["metadata"]["name"], causes)
        for admission in self.admissions:
            admission("create" if before is None else "update", resource, after)
        return after

    def _refuse_unknown(self, resource: Resource, obj: Object, write: Write) -> None:
        if resource.schema is None or write.validation != "Strict":
            return
        rest = {name: value for name, value in obj.items() if name not in ("apiVersion", "kind", "metadata")}
        unknown = unknown_fields(rest, resource.schema)
        if unknown:
            listed = ", ".join(f'unknown field "{path}"' for path in unknown)
            kind = f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}'
            raise bad_request(f"{kind}: strict decoding error: {listed}")

    def _record(self, kind: str, resource: Resource, key: Key, obj: Object) -> None:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        if kind == "DELETED":
            del self.objects[key]
        else:
            self.objects[key] = obj
        self.log.append(Event(self.version, kind, resource, copy.deepcopy(obj)))
        self.changed.notify_all()

    # Deleting.

    def delete(
        self, full_name: str, name: str, namespace: str = "", *, policy: str = "Background", dry_run: bool = False
    ) -> Object:
        """Remove an object and, unless `policy` is Orphan, what it owns; with finalizers it only is marked."""
        resource = self.table[full_name]
        with self.changed:
            held = self._held(full_name, name, namespace)
            key = (full_name, namespace, name)
            if dry_run:
                return copy.deepcopy(held)
            if self._waits(resource, held):
                if "deletionTimestamp" not in held["metadata"]:
                    marked = copy.deepcopy(held)
                    marked["metadata"].update(deletionTimestamp=now(), deletionGracePeriodSeconds=0)
                    self._record("MODIFIED", resource, key, marked)
                return copy.deepcopy(self.objects[key])
            self._remove(resource, key, cascade=policy != "Orphan")
            return copy.deepcopy(held)

    def _waits(self, resource: Resource, obj: Object) -> bool:
        """Whether a deletion has somebody else to wait for."""
        return bool(obj["metadata"].get("finalizers")) or (resource.full_name == "pods" and self.ends_itself(obj))

    def remove(self, full_name: str, name: str, namespace: str) -> None:
        """Take away for good what has ended."""
        with self.changed:
            self._held(full_name, name, namespace)
            self._remove(self.table[full_name], (full_name, namespace, name))

    def _remove(self, resource: Resource, key: Key, *, cascade: bool = True) -> None:
        held = self.objects[key]
        self._record("DELETED", resource, key, copy.deepcopy(held))
        if cascade:
            for owned in list(self._owned_by(held)):
                if owned in self.objects:
                    self.delete(owned[0], owned[2], owned[1])

    def _owned_by(self, owner: Object) -> Iterator[Key]:
        uid, is_namespace = owner["metadata"]["uid"], owner["kind"] == "Namespace"
        for key, obj in list(self.objects.items()):
            owners = [ref["uid"] for ref in obj["metadata"].get("ownerReferences", [])]
            if uid in owners or (is_namespace and key[1] == owner["metadata"]["name"]):
                yield key


def _content(obj: Object) -> Object:
    return {**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}}


def _spec(obj: Object) -> Object:
    return {name: value for name, value in obj.items() if name not in ("metadata", "status")}


def deny(message: str) -> StatusError:
    """What an admission plugin or webhook answers."""
    return StatusError(403, "Forbidden", message)

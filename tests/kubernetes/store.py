"""The store of the fake API server on a real one: what the fake operator and the nodes need of it."""

import copy
import json
import ssl
from pathlib import Path
from typing import Any

import httpx

from tests.kube.errors import StatusError
from tests.kube.resources import BUILT_IN, custom_resources, load_definition
from tests.kube.server import KUBERAY
from tests.kube.store import PLAIN, Change, Object, Store, Write

CONFLICT, NOT_FOUND = 409, 404
ATTEMPTS = 20


class RealStore(Store):
    """Reads and writes over HTTP. Nothing of the fake's own state is there."""

    def __init__(self, url: str, token: str, certificate: Path) -> None:
        trusted = ssl.create_default_context(cafile=str(certificate))
        headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url, headers=headers, verify=trusted, timeout=30)
        self.table = {resource.full_name: resource for resource in BUILT_IN}
        for plural in KUBERAY:
            self.table |= {row.full_name: row for row in custom_resources(load_definition(plural, "ray.io"))}

    def close(self) -> None:
        self._http.close()

    def is_ready(self) -> bool:
        """Whether the server says so."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def call(self, method: str, path: str, body: Object | None = None, **query: str) -> Object:
        """One call. Raises `StatusError` when it is refused."""
        answer = self._http.request(method, path, params=query, json=body)
        if answer.is_error:
            told = answer.json() if "json" in answer.headers.get("content-type", "") else {}
            raise StatusError(answer.status_code, told.get("reason", ""), told.get("message", answer.text))
        loaded: Object = json.loads(answer.content or b"{}")
        return loaded

    def path(self, full_name: str, namespace: str = "", *more: str) -> str:
        """Of a collection, or with `more` of what is in it."""
        row = self.table[full_name]
        root = f"/apis/{row.api_version}" if row.group else f"/api/{row.version}"
        place = [f"namespaces/{namespace}"] if row.namespaced and namespace else []
        return "/".join([root, *place, row.plural, *more])

    def get(self, full_name: str, name: str, namespace: str = "") -> Object:
        return self.call("GET", self.path(full_name, namespace, name))

    def find(self, full_name: str, name: str, namespace: str = "") -> Object | None:
        try:
            return self.get(full_name, name, namespace) if name else None
        except StatusError as error:
            if error.code != NOT_FOUND:
                raise
            return None

    def select(self, full_name: str, namespace: str = "", labels: str = "", fields: str = "") -> list[Object]:
        row = self.table[full_name]
        found = self.call("GET", self.path(full_name, namespace), labelSelector=labels, fieldSelector=fields)
        return [{"apiVersion": row.api_version, "kind": row.kind, "status": {}, **item} for item in found["items"]]

    def create(self, full_name: str, obj: Object, write: Write = PLAIN, *, keep_status: bool = False) -> Object:
        made = self.call("POST", self.path(full_name, obj["metadata"].get("namespace", "")), obj)
        if not keep_status:
            return made
        name, namespace = made["metadata"]["name"], made["metadata"].get("namespace", "")
        write = Write(subresource="status")
        return self.change(full_name, name, namespace, lambda held: {**held, "status": obj["status"]}, write)

    def change(self, full_name: str, name: str, namespace: str, change: Change, write: Write = PLAIN) -> Object:
        """Again, where somebody else has written meanwhile; nothing is sent where nothing changes."""
        path = self.path(full_name, namespace, name)
        for _ in range(ATTEMPTS):
            before = self.get(full_name, name, namespace)
            after = change(copy.deepcopy(before))
            if after == before:
                return before
            try:
                where = f"{path}/{write.subresource}".rstrip("/")
                return self.call("PUT", where, after, fieldManager=write.manager)
            except StatusError as error:
                if error.code != CONFLICT:
                    raise
        raise TimeoutError(f"{full_name} {name} is being changed by others all the time")

    def delete(
        self, full_name: str, name: str, namespace: str = "", *, policy: str = "Background", dry_run: bool = False
    ) -> Object:
        return self._delete(full_name, name, namespace, propagationPolicy=policy)

    def finish(self, pod: Object) -> None:
        """What a kubelet says when nothing of a deleted pod is left."""
        meta = pod["metadata"]
        same = {"uid": meta["uid"]}
        self._delete("pods", meta["name"], meta["namespace"], gracePeriodSeconds=0, preconditions=same)

    def _delete(self, full_name: str, name: str, namespace: str, **options: Any) -> Object:
        body = {"apiVersion": "v1", "kind": "DeleteOptions", **options}
        return self.call("DELETE", self.path(full_name, namespace, name), body)

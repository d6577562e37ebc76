"""Calls to the API server, over what `connection` has opened. Manifests stay dicts: typed models drop what they do not
know.

One place retries: a broken connection, 429 and 503 are tried again with growing pauses (or after the server's own
`Retry-After`); every verb used here may be repeated. All other refusals become a `cluster.k8s.api_errors` exception.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import urllib3

from cluster.errors import UnreachableError
from cluster.k8s.api_errors import Expired, Missing, refusal, refusal_of
from cluster.k8s.kinds import EVENT, POD, SERVICE, Kind, Manifest, kind_of
from cluster.k8s.names import MANAGER
from serving.addresses import shown

RETRY_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 4.0)
LONGEST_PAUSE_S = 30.0
CALL_TIMEOUT_S = (5.0, 30.0)
"""Seconds to connect, and to read an answer."""
BUSY = (429, 503, 504)

Query = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Change:
    """One event of a watch. `kind` is ADDED, MODIFIED, DELETED, or LISTED for an object that a list has shown."""

    kind: str
    obj: Manifest


class Client:
    """Calls to one API server. Safe to use from several threads."""

    def __init__(self, api: Any, *, namespace: str, pause: Callable[[float], None] = time.sleep) -> None:
        self._api = api
        self.pause = pause
        """Called with the seconds to wait before a call is tried again."""
        self.namespace = namespace
        """The context's own namespace."""

    @property
    def server(self) -> str:
        return shown(str(self._api.configuration.host))

    # Reading.

    def version(self) -> str:
        """The server's version, as in `v1.34.1`."""
        return str(self._json("GET", "/version")["gitVersion"])

    def get(self, kind: Kind, name: str, namespace: str = "") -> Manifest:
        """One object. Raises `Missing`."""
        return self._json("GET", kind.path(namespace, name))

    def find(self, kind: Kind, name: str, namespace: str = "") -> Manifest | None:
        """One object, or None where neither it nor perhaps its kind exists."""
        try:
            return self.get(kind, name, namespace)
        except Missing:
            return None

    def list(self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "") -> tuple[Manifest, ...]:
        """Objects of a namespace, or of all. Raises `Missing` where the kind is not installed."""
        return self._list(kind, namespace, labels, fields)[0]

    def _list(self, kind: Kind, namespace: str, labels: str, fields: str) -> tuple[tuple[Manifest, ...], str]:
        answer = self._json("GET", kind.path(namespace), _selectors(labels, fields))
        told = {"apiVersion": kind.api_version, "kind": kind.name}
        return tuple({**told, **item} for item in answer["items"]), answer["metadata"]["resourceVersion"]

    def watch(
        self,
        kind: Kind,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        timeout_s: int = 60,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Change]:
        """List, then what changes, for ever: after 410 or a broken stream, lists again.

        `timeout_s` bounds one request, so that `stopped` is looked at. Objects deleted between a break and the new list
        are not told: who needs them compares.
        """
        while not stopped():
            items, version = self._list(kind, namespace, labels, fields)
            yield from (Change("LISTED", item) for item in items)
            yield from self._watch_from(kind.path(namespace), version, _selectors(labels, fields), timeout_s, stopped)

    def _watch_from(
        self, path: str, version: str, selectors: Query, timeout_s: int, stopped: Callable[[], bool]
    ) -> Iterator[Change]:
        """Changes until the version is too old or the connection breaks."""
        while not stopped():
            query = [*selectors, ("watch", "true"), ("resourceVersion", version), ("timeoutSeconds", str(timeout_s))]
            try:
                for event in self._stream(path, [*query, ("allowWatchBookmarks", "true")], timeout_s + 10.0):
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        yield Change(event["type"], event["object"])
            except (Expired, urllib3.exceptions.HTTPError):
                self.pause(RETRY_PAUSES_S[0])
                return

    def _stream(self, path: str, query: Query, timeout_s: float) -> Iterator[Manifest]:
        answer = self._call("GET", path, query, timeout_s=(5.0, timeout_s))
        waiting = b""
        for chunk in answer.response.stream(None, decode_content=True):
            *lines, waiting = (waiting + chunk).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise refusal(status["code"], status.get("reason", ""), status.get("message", ""))
                yield event

    def logs(self, pod: str, namespace: str, *, previous: bool = False, lines: int | None = None) -> str:
        """The text of a pod's first container, the Ray one; with `previous`, of the run before its restart."""
        query = [("previous", "true")] if previous else []
        query += [("tailLines", str(lines))] if lines else []
        return self._call("GET", POD.path(namespace, pod, "log"), query).read().decode(errors="replace")  # type: ignore[no-any-return]

    def events(self, namespace: str) -> tuple[Manifest, ...]:
        """Events of a namespace, oldest first."""
        return tuple(sorted(self.list(EVENT, namespace), key=_event_time))

    def through_service(
        self,
        service: str,
        port: int,
        path: str,
        namespace: str,
        *,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        query: Query | None = None,
        body: Manifest | None = None,
    ) -> tuple[int, str]:
        """Ask through the API server's proxy: the HTTP status (0: no answer) and the body. Not retried."""
        target = f"{SERVICE.path(namespace, f'{service}:{port}')}/proxy/{quote(path.lstrip('/'))}"
        try:
            media = None if body is None else "application/json"
            answer = self._once(method, target, query or [], body, media, (5.0, 10.0), headers)
        except urllib3.exceptions.HTTPError as error:
            return 0, str(error)
        return answer.status, answer.read().decode(errors="replace")

    def allowed(self, verb: str, kind: Kind, namespace: str = "", subresource: str = "") -> bool:
        """Whether these credentials may do this (SelfSubjectAccessReview)."""
        asked = {"verb": verb, "group": kind.group, "resource": kind.plural, "namespace": namespace}
        asked |= {"subresource": subresource} if subresource else {}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        return bool(self._json("POST", path, [], review, "application/json")["status"]["allowed"])

    # Writing.

    def apply(self, manifest: Manifest, *, dry_run: bool = False, force: bool = False) -> Manifest:
        """Server-side apply; returns the object as it is then (or would be).

        Raises:
            Conflict: another field manager owns a field, and not `force`.
            Invalid: the server's schema refuses a field.
        """
        meta = manifest["metadata"]
        query = [("fieldManager", MANAGER), ("fieldValidation", "Strict"), ("force", str(force).lower())]
        query += [("dryRun", "All")] if dry_run else []
        path = kind_of(manifest).path(meta.get("namespace", ""), meta["name"])
        return self._json("PATCH", path, query, manifest, "application/apply-patch+yaml")

    def delete(self, kind: Kind, name: str, namespace: str = "") -> bool:
        """Ask for deletion, with all the object owns; False where there was none."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        try:
            self._json("DELETE", kind.path(namespace, name), [], body, "application/json")
        except Missing:
            return False
        return True

    # One call.

    def _json(
        self, method: str, path: str, query: Query | None = None, body: Manifest | None = None, media: str | None = None
    ) -> Manifest:
        return _object(self._call(method, path, query or [], body, media))

    def _call(
        self,
        method: str,
        path: str,
        query: Query,
        body: Manifest | None = None,
        media: str | None = None,
        timeout_s: tuple[float, float] = CALL_TIMEOUT_S,
    ) -> Any:
        """The answer to a call, tried again while the server is busy or away."""
        for planned_s in (*RETRY_PAUSES_S, None):
            pause_s = planned_s
            try:
                answer = self._once(method, path, query, body, media, timeout_s)
            except urllib3.exceptions.HTTPError as error:
                if pause_s is None:
                    raise self._unreachable(error) from error
            else:
                if answer.status < 300:
                    return answer
                if answer.status not in BUSY or pause_s is None:
                    raise _refused(answer)
                pause_s = _retry_after(answer, pause_s)
                answer.read()
            self.pause(pause_s)
        raise AssertionError("the last round returns or raises")

    def _once(
        self,
        method: str,
        path: str,
        query: Query,
        body: Manifest | None,
        media: str | None,
        timeout_s: tuple[float, float],
        more: dict[str, str] | None = None,
    ) -> Any:
        headers = {"Accept": "application/json, */*"} | ({"Content-Type": media} if media else {}) | (more or {})
        request = self._api.param_serialize(
            method, path, query_params=query, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        return self._api.call_api(*request, _request_timeout=timeout_s)

    def _unreachable(self, error: Exception) -> UnreachableError:
        return UnreachableError(
            f"no API server answers at {self.server}: {error}", fix="check the address, VPN and `kubectl get nodes`"
        )


def _selectors(labels: str, fields: str) -> Query:
    return [(name, text) for name, text in (("labelSelector", labels), ("fieldSelector", fields)) if text]


def _object(answer: Any) -> Manifest:
    loaded: Manifest = json.loads(answer.read())
    return loaded


def _retry_after(answer: Any, otherwise: float) -> float:
    told = answer.getheader("Retry-After", "")
    return min(float(told), LONGEST_PAUSE_S) if told.isdigit() else otherwise


def _refused(answer: Any) -> Exception:
    return refusal_of(answer.status, answer.read().decode(errors="replace"))


def _event_time(event: Manifest) -> str:
    """When an event was seen last; RFC 3339 text sorts by time."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")

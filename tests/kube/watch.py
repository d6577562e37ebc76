"""The event stream of a watch: what happened after a version, bookmarks, an end."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.kube.errors import StatusError
from tests.kube.routes import Target
from tests.kube.selectors import selects
from tests.kube.store import Event, Store

Object = dict[str, Any]

BOOKMARK_EVERY_S = 1.0


class Watch:
    """One watch. Iterate to get its events until its time is over or `ended` says so."""

    def __init__(self, store: Store, target: Target, query: dict[str, str], ended: Callable[[], bool]) -> None:
        self.store = store
        self.target = target
        self.labels = query.get("labelSelector", "")
        self.fields = query.get("fieldSelector", "")
        if target.name:
            self.fields = f"metadata.name={target.name}"
        self.bookmarks = query.get("allowWatchBookmarks") in ("true", "1")
        self.initial = query.get("sendInitialEvents") in ("true", "1")
        self.deadline = time.monotonic() + float(query.get("timeoutSeconds") or 1800)
        self.ended = ended
        self.known: set[str] = set()
        asked = query.get("resourceVersion", "")
        self.from_start = self.initial or asked in ("", "0")
        self.version = store.version if self.from_start else int(asked)

    def __iter__(self) -> Iterator[Object]:
        """Events as sent on the wire. A version that is too old ends the stream with an ERROR event."""
        yield from self._beginning()
        bookmark_at = time.monotonic() + BOOKMARK_EVERY_S
        while not self.ended() and time.monotonic() < self.deadline:
            try:
                changes = self.store.events_after(self.version, 0.05)
            except StatusError as error:
                yield {"type": "ERROR", "object": error.body()}
                return
            for change in changes:
                self.version = change.version
                yield from self._told(change)
            if self.bookmarks and time.monotonic() > bookmark_at:
                yield self._bookmark({})
                bookmark_at = time.monotonic() + BOOKMARK_EVERY_S

    def _beginning(self) -> Iterator[Object]:
        with self.store.lock:
            there = self._listed()
            if self.from_start:
                self.version = self.store.version
        self.known = {obj["metadata"]["uid"] for obj in there}
        if self.from_start:
            yield from ({"type": "ADDED", "object": obj} for obj in there)
        if self.initial:
            yield self._bookmark({"annotations": {"k8s.io/initial-events-end": "true"}})

    def _listed(self) -> list[Object]:
        return self.store.select(self.target.resource.full_name, self.target.namespace, self.labels, self.fields)

    def _bookmark(self, metadata: Object) -> Object:
        resource = self.target.resource
        shell = {"kind": resource.kind, "apiVersion": resource.api_version}
        return {
            "type": "BOOKMARK",
            "object": {**shell, "metadata": {**metadata, "resourceVersion": str(self.version)}},
        }

    def _told(self, change: Event) -> Iterator[Object]:
        """An object that leaves the selection is told as deleted, one that enters it as added."""
        meta = change.obj["metadata"]
        here = change.resource.full_name == self.target.resource.full_name
        if not here or self.target.namespace not in ("", meta.get("namespace", "")):
            return
        fits = selects(change.obj, self.labels, self.fields)
        was = meta["uid"] in self.known
        if fits and change.kind != "DELETED":
            self.known.add(meta["uid"])
            yield {"type": "MODIFIED" if was and change.kind != "ADDED" else "ADDED", "object": change.obj}
        elif was or fits:
            self.known.discard(meta["uid"])
            yield {"type": "DELETED", "object": change.obj}

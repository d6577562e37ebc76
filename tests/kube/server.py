"""A Kubernetes API server over real HTTP, enough of one that `kubectl` and the official client take it for real.

Limits: one version a resource, JSON only (no protobuf, no tables), no CEL rules, Kubernetes' own kinds not validated,
plain HTTP without authentication. Watches are sent chunked, answers whole: a client would hold small pieces back.
"""

import threading
from collections.abc import Callable, Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.kube.faults import Faults
from tests.kube.rbac import Rbac
from tests.kube.resources import load_definition
from tests.kube.store import Store

Backend = Callable[[str, str, Mapping[str, str], bytes], tuple[int, bytes]]
"""What answers behind a Service or pod: (method, path, headers in lower case) to (status, body)."""

KUBERAY = ("rayclusters", "rayjobs", "rayservices")


class KubeServer(ThreadingHTTPServer):
    """The server and all it knows. Start it as a context manager."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *, kuberay: bool = True) -> None:
        from tests.kube.handler import Handler

        super().__init__(("127.0.0.1", 0), Handler)
        self.store = Store()
        self.faults = Faults()
        self.rbac = Rbac()
        self.logs: dict[tuple[str, str, bool], str] = {}
        """Log text by (namespace, pod, previous)."""
        self.backends: dict[tuple[str, str, str], Backend] = {}
        """By (namespace, `pods` or `services`, `name:port`)."""
        self.calls: list[tuple[str, str]] = []
        """Every (method, path with query), in order."""
        self.stopping = False
        self.cuts = 0
        """Raised to break all watches that are open."""
        if kuberay:
            self.install(*((plural, "ray.io") for plural in KUBERAY))

    def install(self, *definitions: tuple[str, str]) -> None:
        """Serve published custom resources, named by (plural, group)."""
        for plural, group in definitions:
            self.store.install(load_definition(plural, group))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def cut_watches(self) -> None:
        """Break every open watch in mid-stream."""
        self.cuts += 1

    def kubeconfig(self, path: Path, namespace: str = "default") -> Path:
        """Write a kubeconfig that leads here."""
        config: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "tester", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "tester", "namespace": namespace}}],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def __enter__(self) -> "KubeServer":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True, name="kube-server").start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping = True
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no error; anything else is told by the default."""
        import sys

        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

"""One HTTP request: finds what it names, checks, acts, answers."""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import yaml

from tests.kube import discovery
from tests.kube.disruption import evict
from tests.kube.errors import StatusError, bad_request, gone, not_found
from tests.kube.faults import Disconnect
from tests.kube.patches import json_patch, merge_patch
from tests.kube.routes import Target, nothing_here, parse
from tests.kube.server import KubeServer
from tests.kube.store import Write
from tests.kube.watch import Watch

Object = dict[str, Any]
TRUE = ("true", "1")


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP/1.1 with kept connections."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    @property
    def kube(self) -> KubeServer:
        return cast(KubeServer, self.server)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """Say nothing: `KubeServer.calls` has it."""

    def do_GET(self) -> None:
        self._answer_call()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _answer_call(self) -> None:
        split = urlsplit(self.path)
        self.query = dict(parse_qsl(split.query, keep_blank_values=True))
        self.raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.kube.calls.append((self.command, self.path))
        try:
            self.kube.faults.strike(self.command, split.path, watch=self.query.get("watch") in TRUE)
            self._route(unquote(split.path))
        except StatusError as error:
            self._refuse(error)
        except Disconnect:
            self.close_connection = True

    def _refuse(self, error: StatusError) -> None:
        headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
        self._send(error.code, error.body(), headers)

    def _send(self, code: int, body: Object | bytes, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(body, bytes) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def _body(self) -> Any:
        if "protobuf" in self.headers.get("Content-Type", ""):
            raise StatusError(415, "UnsupportedMediaType", "this server reads JSON and YAML only")
        try:
            return yaml.load(self.raw, yaml.CSafeLoader) if self.raw else {}
        except yaml.YAMLError as error:
            raise bad_request(f"the body is neither JSON nor YAML: {error}") from error

    def _route(self, path: str) -> None:
        fixed = self._discovered(path.rstrip("/") or "/")
        if fixed is not None:
            self._send(200, fixed)
        elif path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" and self.command == "POST":
            self._send(201, self.kube.rbac.review(self._body()))
        else:
            self._act(parse(path, self.kube.store.table))

    def _discovered(self, path: str) -> Object | None:
        table = self.kube.store.table
        if self.command != "GET":
            return None
        if path.startswith("/openapi/v3/"):
            return discovery.openapi_document(table, path.removeprefix("/openapi/v3/"))
        fixed: dict[str, Callable[[], Object]] = {
            "/version": lambda: discovery.VERSION,
            "/api": discovery.core_versions,
            "/apis": lambda: discovery.group_list(table),
            "/openapi/v3": lambda: discovery.openapi_index(table),
        }
        if path in fixed:
            return fixed[path]()
        parts = path.split("/")
        if (parts[1] == "api" and len(parts) == 3) or (parts[1] == "apis" and len(parts) == 4):
            return discovery.resource_list(table, "/".join(parts[2:]))
        return None

    def _act(self, target: Target) -> None:
        watching = self.query.get("watch") in TRUE
        self.kube.rbac.check(self._verb(target, watching=watching), target)
        if target.subresource == "proxy":
            self._proxy(target)
        elif target.subresource == "log":
            self._log(target)
        elif (target.resource.kind, target.subresource, self.command) == ("Pod", "eviction", "POST"):
            self._send(201, evict(self.kube.store, target.name, target.namespace))
        elif target.subresource not in ("", "status"):
            raise nothing_here()
        elif watching:
            self._watch(target)
        else:
            code, body = {"GET": self._get, "POST": self._post, "PUT": self._put, "PATCH": self._patch}.get(
                self.command, self._delete
            )(target)
            self._send(code, body)

    def _verb(self, target: Target, *, watching: bool) -> str:
        if self.command == "GET":
            return "watch" if watching else "get" if target.name else "list"
        return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[self.command]

    def _get(self, target: Target) -> tuple[int, Object]:
        store, resource = self.kube.store, target.resource
        if target.name:
            return 200, store.get(resource.full_name, target.name, target.namespace)
        selectors = (self.query.get("labelSelector", ""), self.query.get("fieldSelector", ""))
        with store.lock:
            items = store.select(resource.full_name, target.namespace, *selectors)
            version = str(store.version)
        shell = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version}
        return 200, {**shell, "metadata": {"resourceVersion": version}, "items": items}

    def _write(self, target: Target) -> Write:
        return Write(
            manager=self.query.get("fieldManager") or self.headers.get("User-Agent", "unknown").split("/")[0],
            dry_run=self.query.get("dryRun") == "All",
            validation=self.query.get("fieldValidation") or "Warn",
            subresource=target.subresource,
        )

    def _post(self, target: Target) -> tuple[int, Object]:
        body = self._body()
        if target.namespace:
            self._same_namespace(target, body)
        return 201, self.kube.store.create(target.resource.full_name, body, self._write(target))

    def _same_namespace(self, target: Target, body: Object) -> None:
        told = body.setdefault("metadata", {}).setdefault("namespace", target.namespace)
        if told != target.namespace:
            raise bad_request(f"the namespace of the object ({told}) is not that of the address ({target.namespace})")

    def _put(self, target: Target) -> tuple[int, Object]:
        body, store = self._body(), self.kube.store
        write = self._write(target)
        return 200, store.change(target.resource.full_name, target.name, target.namespace, lambda _: body, write)

    def _patch(self, target: Target) -> tuple[int, Object]:
        media = self.headers.get("Content-Type", "").split(";")[0]
        full_name, where, body = target.resource.full_name, (target.name, target.namespace), self._body()
        store, write = self.kube.store, self._write(target)
        if media == "application/apply-patch+yaml":
            if "fieldManager" not in self.query:
                raise bad_request("PatchOptions.meta.k8s.io is invalid: fieldManager: Required value")
            there = store.find(full_name, *where) is not None
            forced = self.query.get("force") in TRUE
            return 200 if there else 201, store.apply(full_name, *where, body, write, force=forced)
        kinds = {
            "application/merge-patch+json": merge_patch,
            "application/json-patch+json": json_patch,
            "application/strategic-merge-patch+json": merge_patch,
        }
        custom = target.resource.schema is not None
        if media not in kinds or (custom and media == "application/strategic-merge-patch+json"):
            raise StatusError(415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {media}")
        return 200, store.change(full_name, *where, lambda obj: kinds[media](obj, body), write)

    def _delete(self, target: Target) -> tuple[int, Object]:
        options, store = self._body(), self.kube.store
        policy = options.get("propagationPolicy") or self.query.get("propagationPolicy") or "Background"
        dry_run = "All" in (options.get("dryRun") or []) or self.query.get("dryRun") == "All"
        if not target.name:
            selector = self.query.get("labelSelector", "")
            for obj in store.select(target.resource.full_name, target.namespace, selector):
                store.delete(target.resource.full_name, obj["metadata"]["name"], target.namespace, policy=policy)
            return 200, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        return 200, store.delete(
            target.resource.full_name, target.name, target.namespace, policy=policy, dry_run=dry_run
        )

    def _log(self, target: Target) -> None:
        self.kube.store.get("pods", target.name, target.namespace)
        key = (target.namespace, target.name, self.query.get("previous") in TRUE)
        if key not in self.kube.logs:
            raise bad_request(f'container "ray" in pod "{target.name}" is waiting to start: ContainerCreating')
        lines = self.kube.logs[key].splitlines(keepends=True)
        self._send(200, "".join(lines[-int(self.query.get("tailLines") or len(lines)) or len(lines) :]).encode())

    def _proxy(self, target: Target) -> None:
        name = target.name.split(":")[0]
        if self.kube.store.find(target.resource.full_name, name, target.namespace) is None:
            raise not_found(target.resource.full_name, name)
        backend = self.kube.backends.get((target.namespace, target.resource.plural, target.name))
        if backend is None:
            text = f'no endpoints available for service "{target.name}"'
            raise StatusError(503, "ServiceUnavailable", text)
        # The server keeps `Authorization` to itself.
        told = {name.lower(): text for name, text in self.headers.items() if name.lower() != "authorization"}
        self._send(*backend(self.command, target.rest, told, self.raw))

    def _watch(self, target: Target) -> None:
        asked = self.query.get("resourceVersion", "")
        if asked not in ("", "0") and int(asked) < self.kube.store.oldest:
            raise gone(f"too old resource version: {asked} ({self.kube.store.oldest})")
        cuts = self.kube.cuts
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        watch = Watch(self.kube.store, target, self.query, lambda: self.kube.stopping or self.kube.cuts > cuts)
        for event in watch:
            self._chunk(json.dumps(event).encode() + b"\n")
        if self.kube.cuts > cuts:
            self.close_connection = True
        else:
            self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

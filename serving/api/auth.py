"""Bearer keys from a file: who asks. Keys are kept and compared as digests, in constant time, and never logged."""

import hashlib
import hmac
import logging
from contextlib import nullcontext
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.api.limits import KeyLimits
from serving.api.static import FILES
from serving.errors import ConfigError, Unauthorized

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/readyz", *FILES})
"""What needs no key: what a kubelet or a load balancer asks, and the console's files, which hold no secret."""

_CALLER = "gangway.caller"
"""Place in an ASGI scope."""


def caller(request: Request) -> str:
    """Whose key came with the request; empty when no keys are asked for."""
    return str(request.scope.get(_CALLER, ""))


class KeyFile:
    """One key a line, optionally `name:key`; empty lines and those that begin with # do not count.

    Keys of one name are one caller's, so that a key can be replaced without a pause. A key without a name is a caller
    of its own.
    """

    def __init__(self, path: Path) -> None:
        """Raises `ConfigError` when it cannot be read."""
        self._path = path
        try:
            self._stamp, self._owners = self._read()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"security.api_keys_file {path}: {error}") from error

    def owner(self, key: str) -> str | None:
        """Whose key this is in the file as it is now, None if nobody's. Takes the same time wherever it differs."""
        self._reload_if_changed()
        digest = _digest(key)
        owners = [name for known, name in self._owners if hmac.compare_digest(digest, known)]
        return owners[0] if owners else None

    def _reload_if_changed(self) -> None:
        try:
            if self._current_stamp() != self._stamp:
                self._stamp, self._owners = self._read()
                log.info("%d API keys read again", len(self._owners))
        except (OSError, UnicodeDecodeError) as error:
            log.error("API keys cannot be read again, the last ones stay: %s", error)

    def _current_stamp(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> tuple[tuple[int, int, int], list[tuple[bytes, str]]]:
        stamp = self._current_stamp()
        lines = [line.strip() for line in self._path.read_text(encoding="utf-8").splitlines()]
        pairs = [line.rpartition(":") for line in lines if line and not line.startswith("#")]
        return stamp, [_owned(name.strip(), key.strip()) for name, _, key in pairs if key.strip()]


class KeyGuard:
    """ASGI middleware: a known bearer key on every path but `OPEN_PATHS`, and its owner's limits on every POST."""

    def __init__(self, app: ASGIApp, keys: KeyFile, limits: KeyLimits) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        owner = scope[_CALLER] = self._owner(Headers(scope=scope).get("authorization", ""))
        with self._limits.counted(owner) if scope["method"] == "POST" else nullcontext():
            await self._app(scope, receive, send)

    def _owner(self, authorization: str) -> str:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthorized("an API key is needed: Authorization: Bearer KEY", code="missing_api_key")
        owner = self._keys.owner(key.strip())
        if owner is None:
            raise Unauthorized("this API key is not known", code="invalid_api_key")
        return owner


def _owned(name: str, key: str) -> tuple[bytes, str]:
    digest = _digest(key)
    return digest, name or f"key {digest.hex()[:16]}"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

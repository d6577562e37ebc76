"""Bearer keys from a file. Keys are kept and compared as digests, in constant time, and never logged."""

import hashlib
import hmac
import logging
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import ConfigError, Unauthorized

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""What a kubelet or a load balancer asks, without a key."""


class KeyFile:
    """One key a line, optionally `name:key`; empty lines and those that begin with # do not count."""

    def __init__(self, path: Path) -> None:
        """Raises `ConfigError` when it cannot be read."""
        self._path = path
        try:
            self._stamp, self._digests = self._read()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"security.api_keys_file {path}: {error}") from error

    def knows(self, key: str) -> bool:
        """Is `key` in the file as it is now? Takes the same time wherever it differs."""
        self._reload_if_changed()
        digest = _digest(key)
        known = [hmac.compare_digest(digest, one) for one in self._digests]
        return any(known)

    def _reload_if_changed(self) -> None:
        try:
            if self._current_stamp() != self._stamp:
                self._stamp, self._digests = self._read()
                log.info("%d API keys read anew", len(self._digests))
        except (OSError, UnicodeDecodeError) as error:
            log.error("API keys cannot be read anew, the last ones stay: %s", error)

    def _current_stamp(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> tuple[tuple[int, int, int], list[bytes]]:
        stamp = self._current_stamp()
        lines = [line.strip() for line in self._path.read_text(encoding="utf-8").splitlines()]
        keys = [line.rpartition(":")[2].strip() for line in lines if line and not line.startswith("#")]
        return stamp, [_digest(key) for key in keys if key]


class KeyGuard:
    """ASGI middleware: a known bearer key on every path but `OPEN_PATHS`."""

    def __init__(self, app: ASGIApp, keys: KeyFile) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            self._check(Headers(scope=scope).get("authorization", ""))
        await self._app(scope, receive, send)

    def _check(self, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthorized("an API key is needed: Authorization: Bearer KEY", code="missing_api_key")
        if not self._keys.knows(key.strip()):
            raise Unauthorized("this API key is not known", code="invalid_api_key")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

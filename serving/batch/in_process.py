"""The application without a server: a request goes in and an answer comes out within this process.

So a row is checked, computed, and complained about exactly as over HTTP, with no socket on the way.
"""

import asyncio
from typing import Any

from starlette.types import ASGIApp

from serving.api.app import create_app
from serving.config import Config, SecurityConfig
from serving.gateway.service import Service


def application(service: Service, config: Config) -> "Inside":
    """The application without keys and their limits: the user who runs a batch is already trusted."""
    return Inside(create_app(service, config.model_copy(update={"security": SecurityConfig()})))


class Inside:
    """Asks an ASGI application (https://asgi.readthedocs.io/en/latest/specs/www.html)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._never_gone = asyncio.Event()

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """The status and the body of the answer to a POST."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
            "client": None,
            "server": None,
        }
        unread = [body]
        status, parts = 500, list[bytes]()

        async def receive() -> dict[str, Any]:
            if not unread:
                await self._never_gone.wait()
            return {"type": "http.request", "body": unread.pop(), "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                parts.append(message.get("body", b""))

        await self._app(scope, receive, send)
        return status, b"".join(parts)

"""The console: static files, the same for everybody. They hold no secret and need no key: the page asks for one."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
"""By the ending of a file's name. Text alone, in UTF-8."""

_POLICY = "; ".join(
    (
        "default-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "object-src 'none'",
    )
)
"""Nothing from elsewhere, nothing inline: what a model writes can never become script."""


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file, read once."""

    body: bytes
    headers: dict[str, str]

    async def page(self, request: Request) -> Response:
        """The file, or 304 to a browser that has it already."""
        known = request.headers.get("if-none-match", "")
        if self.headers["ETag"] in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=self.headers)
        return Response(self.body, headers=self.headers)


def _load() -> dict[str, StaticFile]:
    folder = files("serving.api").joinpath("console")
    return {
        "/" if file.name == "index.html" else f"/console/{file.name}": _file(file.name, file.read_bytes())
        for file in folder.iterdir()
        if file.name.rpartition(".")[-1] in MEDIA_TYPES
    }


def _file(name: str, body: bytes) -> StaticFile:
    headers = {
        "Content-Type": f"{MEDIA_TYPES[name.rpartition('.')[-1]]}; charset=utf-8",
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "Cache-Control": "no-cache",  # ask each time, so that a page never runs with another version's modules
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return StaticFile(body, headers)


FILES = _load()
"""Path -> file."""


def static_routes() -> list[Route]:
    """`GET /`, and what that page asks for."""
    return [Route(path, file.page) for path, file in FILES.items()]

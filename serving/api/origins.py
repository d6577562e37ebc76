"""Which web pages may ask. A browser sends whatever a page of anybody's wants to any address that it reaches, loopback
too, and says with it whose page that is (Origin) and by which name the server was asked (Host).

Where keys are asked for, a page needs one like everybody. Where none are, these headers are all that tells the user's
own doing from a stranger's page. Programs that are no browser send no Origin, and may claim any.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.config import is_loopback
from serving.errors import Forbidden

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""What is answered without a check of the origin: what a kubelet or a load balancer asks, by addresses of theirs."""

_ANY = "*"
_PREFLIGHT_S = 600
"""How long a browser may remember an answer to a preflight."""
_EXPOSED = "Retry-After, X-Request-ID"


class Origins:
    """`security.allowed_origins`. False when there are none."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = frozenset(origin.lower() for origin in allowed)

    def __bool__(self) -> bool:
        return bool(self._allowed)

    def __contains__(self, origin: str) -> bool:
        return _ANY in self._allowed or origin.lower() in self._allowed


@dataclass(frozen=True, slots=True)
class Names:
    """Names by which the server may be asked: loopback's, and more."""

    more: Collection[str]

    def __contains__(self, host: str) -> bool:
        name = _without_port(host).lower()
        return is_loopback(name) or name in self.more or _ANY in self.more


def own_names(host: str, allowed: Collection[str]) -> Names | None:
    """Names to hold clients to; None for any, where others may reach `host` and none are listed."""
    return Names([name.lower() for name in allowed]) if is_loopback(host) or allowed else None


def _without_port(host: str) -> str:
    """Of a Host header; a port follows the last colon, unless that is inside of an IPv6 address."""
    name, colon, port = host.rpartition(":")
    return name if colon and "]" not in port else host


class StrangerGuard:
    """ASGI middleware where no keys are asked for: a foreign Host or Origin is refused."""

    def __init__(self, app: ASGIApp, names: Names | None, origins: Origins) -> None:
        """`names`: by which the server may be asked; None for any."""
        self._app = app
        self._names = names
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            self._check(Headers(scope=scope), scope.get("scheme", "http"))
        await self._app(scope, receive, send)

    def _check(self, headers: Headers, scheme: str) -> None:
        """Raise `Forbidden`. A request without a Host (HTTP/1.0) is no browser's."""
        hosts = headers.getlist("host")
        if self._names is not None and not all(host in self._names for host in hosts):
            message = "asked by a name that is not this server's; security.allowed_hosts lists more, or use API keys"
            raise Forbidden(message, code="foreign_host")
        own = {f"{scheme}://{host}".lower() for host in hosts}
        if not all(origin.lower() in own or origin in self._origins for origin in headers.getlist("origin")):
            message = "a web page from elsewhere asks; security.allowed_origins lists those that may, or use API keys"
            raise Forbidden(message, code="foreign_origin")


class CrossOrigin:
    """ASGI middleware around everything: CORS for the origins that are allowed, errors included.

    A preflight has no key, and asks for nothing; it is answered here.
    """

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = headers.get("origin")
        if origin is None or origin not in self._origins:
            await self._app(scope, receive, send)
        elif scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await Response(status_code=204, headers=_preflight(origin, headers))(scope, receive, send)
        else:
            await self._app(scope, receive, _opened_to(origin, send))


def _preflight(origin: str, asked: Headers) -> dict[str, str]:
    """Any header may come: clients send names of their own, and what they mean is looked at later."""
    answer = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": asked.get("access-control-request-headers", "*"),
        "Access-Control-Max-Age": str(_PREFLIGHT_S),
        "Vary": "Origin, Access-Control-Request-Headers",
    }
    if "access-control-request-private-network" in asked:
        answer["Access-Control-Allow-Private-Network"] = "true"
    return answer


def _opened_to(origin: str, send: Send) -> Send:
    """`send`, with the headers by which a browser lets a page of `origin` read the answer."""

    async def opened(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = _EXPOSED
            headers.add_vary_header("Origin")
        await send(message)

    return opened

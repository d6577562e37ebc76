"""What the API server says no with, as exceptions: an HTTP status becomes a type. Pure."""

import json

from cluster.errors import AccessError, ClusterError, ConflictError
from cluster.k8s.kinds import Manifest


class ApiError(ClusterError):
    """One call was refused: `code` is the HTTP status, `reason` the server's machine-readable word."""

    def __init__(self, message: str, *, code: int, reason: str = "", fix: str | None = None) -> None:
        super().__init__(message, fix=fix)
        self.code = code
        self.reason = reason


class Denied(ApiError, AccessError):
    """401 or 403: credentials, RBAC, quota, webhook or pod security."""


class Missing(ApiError):
    """404: no such object, or no such kind because its definition is not installed."""


class Conflict(ApiError, ConflictError):
    """409: somebody else owns a field, or the object was changed meanwhile."""


class Invalid(ApiError):
    """400 or 422: the manifest breaks the server's schema."""


class Expired(ApiError):
    """410: the watched version is too old; list again."""


TYPES: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Denied,
    403: Denied,
    404: Missing,
    409: Conflict,
    410: Expired,
    422: Invalid,
}

FIXES = {
    401: "log in to the cluster again and check with `kubectl auth whoami`",
    409: "another manager owns these fields: leave them to it, or take them with --force",
}


def refusal(code: int, reason: str, message: str) -> ApiError:
    """The exception for a status."""
    text = f"the API server answers {code}: {message or reason or 'no reason given'}"
    return TYPES.get(code, ApiError)(text, code=code, reason=reason, fix=FIXES.get(code))


def refusal_of(code: int, body: str) -> ApiError:
    """The exception for an answer, whose body is a `Status` unless a proxy wrote it."""
    try:
        status: Manifest = json.loads(body)
        return refusal(code, status.get("reason", ""), status.get("message", ""))
    except (ValueError, AttributeError):
        return refusal(code, "", " ".join(body.split())[:300])

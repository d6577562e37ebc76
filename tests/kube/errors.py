"""The answers an API server refuses with: one exception that carries a `Status` object."""

from typing import Any


class StatusError(Exception):
    """A refusal. `code` is the HTTP status, `reason` the machine-readable word clients switch on."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        causes: list[dict[str, str]] | None = None,
        retry_after_s: int | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.causes = causes or []
        self.retry_after_s = retry_after_s
        self.details = details or {}

    def body(self) -> dict[str, Any]:
        details = dict(self.details)
        if self.causes:
            details["causes"] = self.causes
        if self.retry_after_s is not None:
            details["retryAfterSeconds"] = self.retry_after_s
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "details": details,
            "code": self.code,
        }


def not_found(resource: str, name: str) -> StatusError:
    return StatusError(404, "NotFound", f'{resource} "{name}" not found', details={"name": name, "kind": resource})


def already_exists(resource: str, name: str) -> StatusError:
    return StatusError(
        409, "AlreadyExists", f'{resource} "{name}" already exists', details={"name": name, "kind": resource}
    )


def conflict(resource: str, name: str) -> StatusError:
    text = "the object has been modified; please apply your changes to the latest version and try again"
    return StatusError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {resource} "{name}": {text}',
        details={"name": name, "kind": resource},
    )


def invalid(kind: str, name: str, causes: list[tuple[str, str]]) -> StatusError:
    """422 with one cause a field: `causes` are (field path, what is wrong)."""
    told = [{"reason": "FieldValueInvalid", "field": field, "message": text} for field, text in causes]
    listed = ", ".join(f"{field}: {text}" for field, text in causes)
    message = f'{kind} "{name}" is invalid: {listed if len(causes) == 1 else f"[{listed}]"}'
    return StatusError(422, "Invalid", message, causes=told, details={"name": name, "kind": kind})


def bad_request(message: str) -> StatusError:
    return StatusError(400, "BadRequest", message)


def gone(message: str) -> StatusError:
    return StatusError(410, "Expired", message)

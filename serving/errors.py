"""The exception tree. An error's type says who must act; its fields carry the facts for acting.

Nothing here knows HTTP or exit codes: `serving.api.errors` and `serving.cli` each translate in one place.
"""


class GangwayError(Exception):
    """Everything this project raises on purpose. `str(error)` is one sentence for the person who must act."""


class CallerError(GangwayError):
    """The caller must change the request; the same request will never succeed."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class InvalidRequest(CallerError):
    """A field is missing, of the wrong type or out of range; `param` names it."""


class NotFound(CallerError):
    """No such route or model."""


class Unauthorized(CallerError):
    """The bearer key is missing or unknown."""


class Forbidden(CallerError):
    """Somebody else's web page asks, or the server is asked by a name that is not its own."""


class BodyTooLarge(CallerError):
    """The request body is over the limit."""


class BodyTooSlow(CallerError):
    """The request body did not come to its end in time."""


class RequestBreaksGroup(CallerError):
    """Ranks end whenever this request runs; it is not computed again."""


class LaterError(GangwayError):
    """The same request may succeed later; `retry_after_s` says when to try."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0, code: str | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.code = code


class QueueFull(LaterError):
    """The waiting queue is at its limit."""


class OverLimit(LaterError):
    """The caller has as much as one API key may have."""


class GroupUnavailable(LaterError):
    """No generation of the group is ready, or it is draining."""


class DeadlineExceeded(LaterError):
    """The request's own `timeout_s` passed before it was complete."""


class PeerLost(GangwayError):
    """A rank died, hangs or was cut off: this process cannot go on, and the group must be formed again."""


class OperatorError(GangwayError):
    """The operator must act: a setting, a file, a machine."""


class ConfigError(OperatorError):
    """A setting is unknown, of the wrong type or out of range."""


class ModelError(OperatorError):
    """The model cannot be loaded, or would be computed wrongly; loading again will not help."""


class GroupFailed(OperatorError):
    """The group failed more often than `fault.max_restarts` allows; carries the first failure's reason."""


class ProtocolError(GangwayError):
    """A step that no correct rank 0 would ask for: a bug, or two generations mixed up. The process must not go on."""

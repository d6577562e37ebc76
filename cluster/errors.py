"""What can stand between a configuration and a running gang. An error's type says who must act, `fix` says how.

They are `serving.errors.OperatorError`s, so the command line turns them into one sentence and an exit code as it does
for all others: 2 for `SpecError`, which is a wrong configuration, 1 for the rest.
"""

from serving.errors import ConfigError, ModelError, OperatorError


class ClusterError(OperatorError):
    """Everything that this package raises on purpose. `str(error)` is one sentence, with the fix at its end."""

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(f"{message}; {fix}" if fix else message)
        self.fix = fix


class SpecError(ClusterError, ConfigError):
    """The author of the cluster configuration must change it; applying it could never work."""


class ShapeError(ClusterError, ModelError):
    """The user who chose the model must act: its files do not say what it needs, or no number of ranks can hold it."""


class UnreachableError(ClusterError):
    """The API server does not answer, or breaks off: the same command may succeed later."""


class AccessError(ClusterError):
    """The administrator of rights must act: the credentials are missing or refused, or a verb is not allowed."""


class ConflictError(ClusterError):
    """The caller must decide: a live object has another owner, or would have to be made again."""


class PlatformError(ClusterError):
    """The administrator of the Kubernetes cluster must act: the operator, a CRD, a scheduler or an admission policy."""


class RoomError(ClusterError):
    """There is no room for the whole gang: nodes, GPUs, quota or queue. Somebody must free some, or ask for less."""


class WorkloadError(ClusterError):
    """A pod of the gang cannot run: image, secret, volume, memory, a crash. `pod` and `node` say where; `said`: the
    last that its container wrote, as far as Kubernetes has kept it.
    """

    def __init__(
        self, message: str, *, pod: str | None = None, node: str | None = None, fix: str | None = None, said: str = ""
    ) -> None:
        super().__init__(message, fix=fix)
        self.pod = pod
        self.node = node
        self.said = said


class WaitTimeout(ClusterError):
    """What was waited for did not come in time; nothing is known to be broken."""

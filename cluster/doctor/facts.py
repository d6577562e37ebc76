"""What `doctor` looks at: one read of everything that its checks need. Only reads; what may not be read is noted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from cluster.config.spec import ClusterSpec
from cluster.k8s.api_errors import Denied, Missing
from cluster.k8s.client import Client
from cluster.k8s.kinds import (
    APPLIED,
    ATTACHMENT,
    CLAIM,
    DEFINITION,
    DEPLOYMENT,
    EVENT,
    LIMITS,
    NAMESPACE,
    NODE,
    POD,
    PRIORITY_CLASS,
    QUEUES,
    QUOTA,
    RAY_CLUSTER,
    RAY_JOB,
    RUNTIME_CLASS,
    SECRET,
    SERVICE,
    STORAGE_CLASS,
    Kind,
    Manifest,
)
from cluster.status.observer import OPERATOR_LABEL, find_queue, limiting_queue

T = TypeVar("T")

RIGHTS: tuple[tuple[str, Kind, str], ...] = (
    *((verb, kind, "") for kind in APPLIED for verb in ("get", "list", "create", "patch", "delete")),
    *((verb, kind, "") for kind in (RAY_JOB, RAY_CLUSTER, POD) for verb in ("watch",)),
    ("list", POD, ""),
    ("get", POD, "log"),
    ("list", EVENT, ""),
    ("get", SERVICE, "proxy"),
)
"""Every verb that `up`, `status`, `logs` and `down` use in the gang's own namespace."""

RIGHTS_TO_DRAIN: tuple[tuple[str, Kind, str], ...] = (("create", SERVICE, "proxy"), ("get", SECRET, ""))
"""What `down` needs to stop the job before it deletes: the way to Ray's dashboard, and its token."""

RAY_DEFINITIONS = ("rayjobs.ray.io", "rayclusters.ray.io")


@dataclass(kw_only=True)
class Facts:
    """What was read. None: it is not there, or it is in `unread`."""

    server: str
    version: str
    denied: tuple[str, ...] = ()
    """Rights that are missing, as in `create rayjobs.ray.io`."""
    denied_to_drain: tuple[str, ...] = ()
    """Of `RIGHTS_TO_DRAIN`."""
    unread: set[str] = field(default_factory=set)
    """Plurals that these credentials may not read."""
    namespace: Manifest | None = None
    definitions: dict[str, Manifest] = field(default_factory=dict)
    operators: tuple[Manifest, ...] = ()
    nodes: tuple[Manifest, ...] = ()
    pods: tuple[Manifest, ...] = ()
    quotas: tuple[Manifest, ...] = ()
    limits: tuple[Manifest, ...] = ()
    claim: Manifest | None = None
    storage_class: Manifest | None = None
    """The claim's."""
    secrets: dict[str, Manifest | None] = field(default_factory=dict)
    attachments: dict[str, Manifest | None] = field(default_factory=dict)
    queue: Manifest | None = None
    limits_of_queue: Manifest | None = None
    """The queue itself, or the ClusterQueue that Kueue's leads to."""
    runtime_class: Manifest | None = None
    priority_class: Manifest | None = None


class Reader:
    """Reads for one configuration."""

    def __init__(self, client: Client, spec: ClusterSpec) -> None:
        self._client = client
        self._spec = spec
        self._unread: set[str] = set()

    def read(self) -> Facts:
        """Raises `UnreachableError` or `AccessError` where not even the version answers."""
        spec, facts = self._spec, Facts(server=self._client.server, version=self._client.version())
        facts.denied, facts.denied_to_drain = self._denied(RIGHTS), self._denied(RIGHTS_TO_DRAIN)
        facts.namespace = self._find(NAMESPACE, spec.namespace)
        facts.definitions = {name: found for name in RAY_DEFINITIONS if (found := self._find(DEFINITION, name))}
        facts.operators = self._list(DEPLOYMENT, labels=OPERATOR_LABEL)
        facts.nodes, facts.pods = self._list(NODE), self._list(POD)
        facts.quotas = self._list(QUOTA, spec.namespace)
        facts.limits = self._list(LIMITS, spec.namespace)
        self._read_named(facts)
        facts.unread = self._unread
        return facts

    def _read_named(self, facts: Facts) -> None:
        """Objects that the configuration names."""
        spec = self._spec
        facts.secrets = {name: self._find(SECRET, name, spec.namespace) for name in named_secrets(spec)}
        for name in spec.network.attachments:
            place, _, rest = name.partition("/")
            facts.attachments[name] = self._find(ATTACHMENT, rest.partition("@")[0], place)
        if spec.storage.model.claim:
            facts.claim = self._find(CLAIM, spec.storage.model.claim, spec.namespace)
        if (used := storage_class_of(facts.claim)) is not None:
            facts.storage_class = self._find(STORAGE_CLASS, used)
        if spec.gang.queue and spec.gang.scheduler in QUEUES:
            facts.queue = find_queue(self._find, QUEUES[spec.gang.scheduler], spec.gang.queue, spec.namespace)
            facts.limits_of_queue = limiting_queue(self._find, spec.gang.scheduler, spec.gang.queue, spec.namespace)
        if spec.nodes.runtime_class:
            facts.runtime_class = self._find(RUNTIME_CLASS, spec.nodes.runtime_class)
        if spec.gang.priority_class:
            facts.priority_class = self._find(PRIORITY_CLASS, spec.gang.priority_class)

    def _denied(self, rights: Iterable[tuple[str, Kind, str]]) -> tuple[str, ...]:
        namespace, client = self._spec.namespace, self._client
        wanting = (row for row in rights if not client.allowed(row[0], row[1], namespace, row[2]))
        return tuple(f"{verb} {kind.full_name}{f'/{sub}' if sub else ''}" for verb, kind, sub in wanting)

    def _find(self, kind: Kind, name: str, namespace: str = "") -> Manifest | None:
        return self._where_allowed(kind, lambda: self._client.find(kind, name, namespace), None)

    def _list(self, kind: Kind, namespace: str = "", labels: str = "") -> tuple[Manifest, ...]:
        return self._where_allowed(kind, lambda: self._client.list(kind, namespace, labels=labels), ())

    def _where_allowed(self, kind: Kind, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except Denied:
            self._unread.add(kind.plural)
        except Missing:
            pass  # The kind is not installed, so there is none of it.
        return otherwise


def storage_class_of(claim: Manifest | None) -> str | None:
    """The StorageClass that a claim names; None where it names none, or is not there."""
    return (claim or {"spec": {}})["spec"].get("storageClassName") or None


def named_secrets(spec: ClusterSpec) -> list[str]:
    """Every Secret that the pods need, in order of name."""
    named = [spec.security.api_keys_secret, spec.security.ray_token_secret, *spec.image.pull_secrets]
    return sorted({name for name in (*named, *(row.secret for row in spec.secret_env.values())) if name})

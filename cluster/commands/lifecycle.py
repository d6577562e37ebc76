"""Brings a gang up and takes it down. Every step is one line; running it again finishes what was cut short.

Decisions are pure and elsewhere: `changes` says what an apply does, `stages` where the gang is, `diagnosis` why it does
not move.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from cluster.commands.diff import Alteration, alteration
from cluster.commands.drain import drain
from cluster.commands.ownership import applicable, says_all
from cluster.doctor.operator import require_an_operator_that_serves
from cluster.errors import ClusterError, ConflictError, PlatformError, RoomError, WaitTimeout, WorkloadError
from cluster.k8s.api_errors import Conflict, Denied, Missing
from cluster.k8s.client import Client
from cluster.k8s.kinds import (
    APPLIED,
    DEPLOYMENT,
    POD,
    RAY_CLUSTER,
    RAY_JOB,
    Kind,
    Manifest,
    kind_of,
)
from cluster.k8s.names import INSTALL, INSTANCE, MANAGED_BY, MANAGER
from cluster.manifests import serve_loop
from cluster.status.dashboard import ask_dashboard
from cluster.status.diagnosis import FAILED, LOST, TABLE, Row, blocked_deletion, findings, hang
from cluster.status.observer import OPERATOR_LABEL, Observer, Wait
from cluster.status.snapshot import Gang, Snapshot, status, title
from cluster.status.stages import stage

POLL_S = 2.0
"""Longest pause between two looks: `/readyz` has no watch."""

LOG_LINES = 20
UNKNOWN = 401
"""The API server does not know who asks, who then may do nothing at all."""

ATTEMPTS = 3
"""To apply one document while others write to it."""

Say = Callable[[str], None]


@dataclass(kw_only=True)
class Lifecycle:
    """The verbs that wait, for one gang."""

    client: Client
    gang: Gang
    say: Say
    """Takes one line."""
    wait: Wait
    """Pauses, or less if something has changed."""
    clock: Callable[[], float] = time.monotonic
    patient: bool = False
    """Wait for room instead of failing."""
    _seen: dict[Row, float] = field(default_factory=dict)

    # Up.

    def up(self, documents: Sequence[Manifest], *, recreate: bool = False, force: bool = False) -> Snapshot:
        """Apply, then wait until `/readyz` answers through the Service.

        Raises:
            ConflictError: it would alter live pods and not `recreate`, or fields that others own and not `force`.
            PlatformError: the operator was started for a scheduler with which it would never submit the command.
            ClusterError: a row of the failure table fits, or the time is over.
        """
        self._require_an_operator_that_serves()
        alterations = self.compare(documents, force=force)
        touched = [row for row in alterations if row.live_template or (recreate and row.recreatable)]
        if touched:
            alterations = self._replace(documents, touched, recreate=recreate, force=force)
        observer = Observer(self.client, self.gang)
        observer.look()
        self._remove_the_earlier_submission()
        self._apply(documents, alterations, force=force)
        return self.wait_ready(observer)

    def _require_an_operator_that_serves(self) -> None:
        """Before anything is applied, as far as its Deployment may be read."""
        try:
            operators = self.client.list(DEPLOYMENT, labels=OPERATOR_LABEL)
        except Missing:
            return
        except Denied as error:
            if error.code == UNKNOWN:
                raise
            return
        require_an_operator_that_serves(operators, self.gang.namespace, self.gang.kind)

    def _remove_the_earlier_submission(self) -> None:
        """Earlier versions submitted to a standing cluster by a RayJob, which would go on doing so next to the head."""
        name = f"{self.gang.name[:41]}-serve"
        for job in self._ours(RAY_JOB) if self.gang.kind == "cluster" else ():
            if job["metadata"]["name"] == name and self.client.delete(RAY_JOB, name, self.gang.namespace):
                self.say(f"deleting RayJob {name}: the head itself runs the command now")

    def _apply(self, documents: Sequence[Manifest], alterations: Sequence[Alteration], *, force: bool = False) -> None:
        for document, row in zip(documents, alterations, strict=True):
            self.say(str(self._apply_one(document, row, force)))

    def _apply_one(self, document: Manifest, row: Alteration, force: bool) -> Alteration:
        """Looked at again where somebody else has written meanwhile: what they have added is to stay."""
        for _ in range(ATTEMPTS):
            if row.sent is None:
                return row
            try:
                self.client.apply(row.sent.manifest, force=force or row.sent.force)
            except Conflict:
                row = self._compare(document, force)
            else:
                return row
        raise ConflictError(f"{row.kind} {row.name} is being changed by others all the time", fix="run `up` again")

    def resubmit(self, command: str) -> Snapshot:
        """Run the serving command again on its standing cluster, and wait as `up` does.

        Raises `ConflictError` where there is no such cluster, and `WorkloadError` where Ray does not take the command.
        """
        if self.client.find(RAY_CLUSTER, self.gang.name, self.gang.namespace) is None:
            raise ConflictError(f"there is no RayCluster {self.gang.name}", fix="run `gangway cluster up` first")
        self._drain()
        observer = Observer(self.client, self.gang)
        code, text = ask_dashboard(
            self.client, observer.look(), "/api/jobs/", method="POST", body=serve_loop.request(command)
        )
        if code != HTTPStatus.OK:
            told = " ".join(text.split())[:200]
            raise WorkloadError(f"Ray's dashboard does not take the command: {code or 'no answer'}: {told}")
        self.say(f"submitted: {command}")
        return self.wait_ready(observer)

    def create(self, documents: Sequence[Manifest]) -> None:
        """Apply what must not be there yet, and do not wait. Raises `ConflictError` where its RayJob is."""
        self._require_an_operator_that_serves()
        name = documents[-1]["metadata"]["name"]
        if self.client.find(RAY_JOB, name, self.gang.namespace) is not None:
            raise ConflictError(f"there is a RayJob {name} already", fix="let it end, then remove it with `down`")
        self._apply(documents, self.compare(documents))

    def wait_ended(self) -> None:
        """Print how the job stands until it has ended well. Raises as `up` does, and when it has failed or is gone.

        Pods that are lost are made again, and so is the job until that was too often: once it runs, only its own
        failure ends the wait.
        """
        coming = [row for row in TABLE if row is not LOST]
        observer, told, begun = Observer(self.client, self.gang), "", False
        while True:
            snapshot = observer.look()
            job = status(snapshot.job)
            if snapshot.job is None:
                raise ConflictError(f"RayJob {self.gang.name} was removed while it was waited for")
            if job.get("jobStatus") == "SUCCEEDED":
                self.say("the job has succeeded")
                return
            line = "the job runs" if job.get("jobStatus") == "RUNNING" else stage(snapshot)
            if line != told:
                self.say(line)
                told = line
            begun = begun or job.get("jobStatus") == "RUNNING"
            self._fail_on_finding(snapshot, [FAILED] if begun else coming)
            self.wait(POLL_S)

    def compare(self, documents: Sequence[Manifest], *, force: bool = False) -> list[Alteration]:
        """What applying would change, as the server itself works it out (dry run). Nothing, where all is there."""
        return [self._compare(document, force) for document in documents]

    def _compare(self, document: Manifest, force: bool) -> Alteration:
        meta = document["metadata"]
        live = self.client.find(kind_of(document), meta["name"], meta["namespace"])
        if live is not None and live["metadata"].get("deletionTimestamp"):
            text = f"{document['kind']} {meta['name']} is being deleted"
            raise ConflictError(text, fix="wait for `gangway cluster down` to end, then run `up` again")
        if live is not None and says_all(live, document):
            return Alteration(document["kind"], meta["name"], "keep")
        sent = applicable(document, live)
        try:
            after = self.client.apply(sent.manifest, dry_run=True, force=force or sent.force)
            return alteration(live, after, sent)
        except Missing as error:
            raise _not_installed(error, document) from error

    def _replace(
        self, documents: Sequence[Manifest], touched: list[Alteration], *, recreate: bool, force: bool
    ) -> list[Alteration]:
        """End what is touched, wait for its end, and compare again. Raises `ConflictError` unless `recreate`."""
        if not recreate:
            told = "; ".join(str(row) for row in touched)
            if any(".numOfHosts: " in field for row in touched for field in row.fields):
                told = f"what runs is of the earlier kind, whose pods KubeRay only replaces all together; {told}"
            text = f"this would alter the template of pods that run, which KubeRay does not do in place: {told}"
            raise ConflictError(text, fix="run `up --recreate` to end the gang and form it again")
        self._drain()
        names = {(row.kind, row.name) for row in touched}
        for document in documents:
            if (document["kind"], document["metadata"]["name"]) in names:
                self.say(f"deleting {document['kind']} {document['metadata']['name']} to make it again")
                self.client.delete(kind_of(document), document["metadata"]["name"], self.gang.namespace)
        self._wait_gone((POD, *(kind_of(d) for d in documents if (d["kind"], d["metadata"]["name"]) in names)))
        return self.compare(documents, force=force)

    def wait_ready(self, observer: Observer) -> Snapshot:
        """Print each step until the model answers. Raises as `up` does."""
        deadline, told = self.clock() + self.gang.ready_s, ""
        while True:
            snapshot = observer.look()
            line = stage(snapshot)
            if line != told:
                self.say(line)
                told = line
            if snapshot.health.ready:
                return snapshot
            self._fail_on_finding(snapshot)
            if self.clock() >= deadline:
                raise WaitTimeout(f"not ready after {self.gang.ready_s:.0f} s ({told}): {hang(snapshot)}")
            self.wait(POLL_S)

    def _fail_on_finding(self, snapshot: Snapshot, table: Iterable[Row] = TABLE) -> None:
        """Raise the first row that has been seen for as long as its patience."""
        found = findings(snapshot, table)
        now, rows = self.clock(), {row for row, _ in found}
        self._seen = {row: since for row, since in self._seen.items() if row in rows}
        for row, error in found:
            since = self._seen.setdefault(row, now)
            if now - since < row.patience_s or (self.patient and isinstance(error, RoomError)):
                continue
            raise self._with_log(error)

    def _with_log(self, error: ClusterError) -> ClusterError:
        """The error, after the last lines of the pod that it is about have been printed."""
        if isinstance(error, WorkloadError):
            text = (self._log_of(error.pod) if error.pod else "") or error.said
            where = f"pod {error.pod}" if error.pod else "the pod that has ended"
            if text:
                self.say(f"last lines of {where}:\n{text}")
            elif error.pod:
                self.say(f"{where} has written no log")
        return error

    def _log_of(self, pod: str) -> str:
        for previous in (True, False):
            try:
                return self.client.logs(pod, self.gang.namespace, previous=previous, lines=LOG_LINES).rstrip()
            except ClusterError:
                continue  # There is no earlier run, or no log yet: neither is what the user has to hear of.
        return ""

    # Down.

    def down(self) -> bool:
        """End the command, delete all of the gang and wait until it is gone; False where there was nothing.

        Raises:
            WaitTimeout: something did not go in time; names the finalizer that holds it.
        """
        self._drain()
        deleted = False
        for kind in APPLIED:
            for obj in self._ours(kind):
                self.say(f"deleting {kind.name} {obj['metadata']['name']}")
                self.client.delete(kind, obj["metadata"]["name"], self.gang.namespace)
                deleted = True
        if deleted or self._left((POD,)):
            self._wait_gone((*APPLIED, POD))
            self.say("gone")
        return deleted

    def _drain(self) -> None:
        drain(self.client, self.gang, self.say, self.wait, self.clock)

    def _ours(self, kind: Kind) -> tuple[Manifest, ...]:
        selector = f"{INSTANCE}={self.gang.name}" + ("" if kind is POD else f",{MANAGED_BY}={MANAGER}")
        try:
            return self.client.list(kind, self.gang.namespace, labels=selector)
        except Missing:
            return ()

    def _left(self, kinds: Iterable[Kind]) -> list[Manifest]:
        return [obj for kind in kinds for obj in self._ours(kind)]

    def _wait_gone(self, kinds: Sequence[Kind]) -> None:
        deadline, told = self.clock() + self.gang.delete_s, ""
        while left := self._left(kinds):
            blocked = blocked_deletion(left)
            line = f"waiting for {len(left)} objects to go{f': {blocked}' if blocked else ''}"
            if line != told:
                self.say(line)
                told = line
            if self.clock() >= deadline:
                raise WaitTimeout(_not_gone(left, blocked, self.gang.delete_s), fix=_how_to_free(blocked))
            self.wait(POLL_S)


def _not_installed(error: Missing, document: Manifest) -> ClusterError:
    meta = document["metadata"]
    if "namespaces" in str(error):
        return PlatformError(
            f"namespace {meta['namespace']} does not exist", fix=f"kubectl create namespace {meta['namespace']}"
        )
    text = f"this cluster does not know the kind {document['kind']} of {document['apiVersion']}"
    return PlatformError(text, fix=f"install KubeRay: {INSTALL}")


def _not_gone(left: Sequence[Manifest], blocked: str | None, seconds: float) -> str:
    names = ", ".join(
        title(obj) if obj["kind"] == "Pod" else f"{obj['kind']} {obj['metadata']['name']}" for obj in left
    )
    return f"after {seconds:.0f} s still there: {names}" + (f"; {blocked}" if blocked else "")


def _how_to_free(blocked: str | None) -> str:
    if blocked is None:
        return "see `kubectl describe` of these, and run `down` again"
    return "let the finalizer's owner finish, or remove the finalizer if that owner is gone, and run `down` again"

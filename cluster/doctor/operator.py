"""The part of `doctor` that looks at KubeRay's operator: what its Deployment says about how it was started. Pure."""

import re
from collections.abc import Iterable, Iterator
from typing import Literal

from cluster.config.rules import JOBS_REFUSED, STANDING_INSTEAD, is_refused
from cluster.config.spec import ClusterSpec
from cluster.doctor.facts import Facts
from cluster.errors import PlatformError
from cluster.k8s.kinds import Manifest
from cluster.k8s.names import INSTALL
from cluster.status.diagnosis import SCHEDULER_ARGUMENTS
from cluster.status.snapshot import status

Level = Literal["ok", "warn", "fail", "skipped"]
Told = Iterator[tuple[Level, str, str]]
"""What a check yields: how bad, what, and the fix."""

OLDEST_OPERATOR = (1, 6)
"""The first KubeRay that gives each pod with ranks its number (RayMultiHostIndexing)."""


def check_operator(facts: Facts, spec: ClusterSpec) -> Told:
    """It runs, is new enough, watches the namespace, and knows the gang scheduler."""
    if "deployments" in facts.unread:
        yield "skipped", "deployments may not be read, so the operator is not to be seen", ""
        return
    if not facts.operators:
        yield "fail", "no KubeRay operator runs", INSTALL
    for deployment in facts.operators:
        yield from _operator(deployment, spec)


def _operator(deployment: Manifest, spec: ClusterSpec) -> Told:
    meta = deployment["metadata"]
    name, container = f"{meta['namespace']}/{meta['name']}", deployment["spec"]["template"]["spec"]["containers"][0]
    if not status(deployment).get("readyReplicas"):
        yield (
            "fail",
            f"{name} has no ready replica",
            f"kubectl -n {meta['namespace']} describe deployment {meta['name']}",
        )
    version = re.search(r":v?(\d+)\.(\d+)", container["image"])
    if version is None:
        yield "warn", f"the version of {container['image']} is not to be seen", "it must be 1.6 or later"
    elif tuple(map(int, version.groups())) < OLDEST_OPERATOR:
        yield "fail", f"{container['image']} does not number the pods with ranks", "use KubeRay 1.6 or later"
    else:
        yield "ok", f"{name} runs {container['image']}", ""
    arguments = _arguments(deployment)
    watched = argument(arguments, "watch-namespace")
    if watched and spec.namespace not in watched.split(","):
        yield "fail", f"{name} watches {watched}, not {spec.namespace}", "add it to helm's watchNamespace"
    yield from _batch_scheduler(arguments, spec)


def _batch_scheduler(arguments: list[str], spec: ClusterSpec) -> Told:
    found = batch_scheduler(arguments)
    wanted = SCHEDULER_ARGUMENTS.get(spec.gang.scheduler)
    if is_refused(found, spec.ray.kind):
        yield "fail", f"the operator runs --batch-scheduler={found}: {JOBS_REFUSED}", STANDING_INSTEAD
    elif wanted is not None and found != wanted:
        fix = f"start the operator with --batch-scheduler={wanted} (helm: batchScheduler.name)"
        yield "fail", f"the operator runs --batch-scheduler={found!r}, so gang labels are ignored", fix
    else:
        yield "ok", f"the operator's batch scheduler is {found or 'none'}, as gang.scheduler needs", ""


def require_an_operator_that_serves(deployments: Iterable[Manifest], namespace: str, kind: str) -> None:
    """Raises `PlatformError` where the operator of this namespace would refuse the RayJob, and never say so."""
    for deployment in deployments:
        arguments = _arguments(deployment)
        watched = argument(arguments, "watch-namespace")
        found = batch_scheduler(arguments)
        if is_refused(found, kind) and (not watched or namespace in watched.split(",")):
            text = f"KubeRay's operator runs --batch-scheduler={found}: {JOBS_REFUSED}"
            raise PlatformError(text, fix=STANDING_INSTEAD)


def _arguments(deployment: Manifest) -> list[str]:
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    return [*container.get("command", []), *container.get("args", [])]


def batch_scheduler(arguments: list[str]) -> str:
    """The scheduler that the operator was started for; "" for none."""
    legacy = argument(arguments, "enable-batch-scheduler") == "true"
    return argument(arguments, "batch-scheduler") or ("volcano" if legacy else "")


def argument(arguments: list[str], name: str) -> str | None:
    """The value of `--name=value` or `-name=value`; `true` where it stands alone."""
    for text in arguments:
        key, _, value = text.lstrip("-").partition("=")
        if text.startswith("-") and key == name:
            return value or "true"
    return None

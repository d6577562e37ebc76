"""`cluster.k8s.client` against real HTTP: what it sends, what it repeats, and what it makes of every refusal."""

import itertools
import socket
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import AccessError, UnreachableError
from cluster.k8s.api_errors import ApiError, Conflict, Denied, Invalid, Missing
from cluster.k8s.client import Client
from cluster.k8s.connection import connect
from cluster.k8s.kinds import POD, RAY_JOB, SERVICE
from cluster.status.observer import Wakeups
from cluster.status.snapshot import Gang
from tests.kube.samples import gang
from tests.kube.server import KubeServer

BREAKS: list[Any] = ["disconnect", 429, 503]


def test_without_a_kubeconfig_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(AccessError, match=str(tmp_path / "absent")):
        connect(str(tmp_path / "absent"))


def test_a_server_that_is_not_there_is_named(client: Client, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        config = tmp_path / "kubeconfig"
        config.write_text(config.read_text().replace(client.server, f"http://127.0.0.1:{taken.getsockname()[1]}"))
        away = connect(str(config))
        away.pause = lambda _: None
        with pytest.raises(UnreachableError, match=r"no API server answers at http://127\.0\.0\.1"):
            away.version()


def test_apply_returns_the_object_also_when_it_creates_it(client: Client) -> None:
    created = client.apply(gang()[1])
    assert created["metadata"]["uid"]
    assert [row["manager"] for row in created["metadata"]["managedFields"]] == ["gangway"]


def test_a_dry_run_creates_nothing(client: Client) -> None:
    client.apply(gang()[1], dry_run=True)
    assert client.find(RAY_JOB, "llama", "default") is None


@pytest.mark.parametrize("fault", BREAKS)
def test_every_verb_is_tried_again_while_the_server_is_busy_or_away(
    client: Client, kube: KubeServer, fault: Any
) -> None:
    for method in ("PATCH", "GET", "DELETE", "POST"):
        kube.faults.add(fault, method=method, times=2)
    client.apply(gang()[1])
    assert client.get(RAY_JOB, "llama", "default")["spec"]["submissionMode"] == "HTTPMode"
    assert client.allowed("create", RAY_JOB, "default")
    assert client.delete(RAY_JOB, "llama", "default")
    assert len(kube.faults.hits) == 8


def test_a_pause_that_the_server_asks_for_is_kept(client: Client, kube: KubeServer) -> None:
    pauses: list[float] = []
    client.pause = pauses.append
    kube.faults.add(429, retry_after_s=7)
    client.version()
    assert pauses == [7.0]


def test_a_server_that_stays_busy_is_told_as_it_answers(client: Client, kube: KubeServer) -> None:
    kube.faults.add(503, times=100)
    with pytest.raises(ApiError, match="503: apiserver not ready"):
        client.version()


@pytest.mark.parametrize(("code", "kind"), [(401, Denied), (403, Denied), (409, Conflict), (500, ApiError)])
def test_a_refusal_is_not_repeated(client: Client, kube: KubeServer, code: int, kind: type[ApiError]) -> None:
    kube.faults.add(code, times=100)
    with pytest.raises(kind):
        client.get(POD, "x", "default")
    assert len(kube.faults.hits) == 1


def test_what_is_not_there_is_missing_and_deleting_it_is_no_error(client: Client) -> None:
    with pytest.raises(Missing):
        client.get(POD, "x", "default")
    assert client.find(POD, "x", "default") is None
    assert not client.delete(SERVICE, "x", "default")


def test_a_field_that_the_schema_does_not_know_is_refused(client: Client) -> None:
    job = gang()[1]
    job["spec"]["mood"] = "good"
    with pytest.raises(Invalid, match=r"unknown field \"spec\.mood\""):
        client.apply(job)


def test_a_watch_tells_what_is_there_and_what_comes(client: Client, kube: KubeServer) -> None:
    client.apply(gang()[1])
    changes = client.watch(RAY_JOB, "default")
    assert next(changes).kind == "LISTED"
    kube.store.delete("rayjobs.ray.io", "llama", "default")
    assert next(changes).kind == "DELETED"


def test_a_watch_goes_on_after_its_time_is_over(client: Client, kube: KubeServer) -> None:
    changes = client.watch(RAY_JOB, "default", timeout_s=1)
    client.apply(gang()[1])
    assert next(changes).obj["metadata"]["name"] == "llama"
    watched = len([path for _, path in kube.calls if "watch=true" in path])
    while len([path for _, path in kube.calls if "watch=true" in path]) < watched + 2:
        kube.store.change("rayjobs.ray.io", "llama", "default", _touched)
        assert next(changes).kind == "MODIFIED"
    lists = [path for method, path in kube.calls if method == "GET" and path.endswith("rayjobs")]
    assert len(lists) == 1, "a watch that has run out goes on from its last version"


_COUNT = itertools.count()


def _touched(obj: dict[str, Any]) -> dict[str, Any]:
    labels = {**obj["metadata"].get("labels", {}), "touched": str(next(_COUNT))}
    return {**obj, "metadata": {**obj["metadata"], "labels": labels}}


@pytest.mark.parametrize("end", ["cut", "compact"])
def test_a_watch_that_is_cut_or_too_old_lists_anew(client: Client, kube: KubeServer, end: str) -> None:
    changes = client.watch(RAY_JOB, "default")
    client.apply(gang()[1])
    assert next(changes).obj["metadata"]["name"] == "llama"
    client.apply(gang("other")[1])
    assert {next(changes).obj["metadata"]["name"]} == {"other"}
    if end == "cut":
        kube.cut_watches()
    else:
        kube.store.compact()
    again = {change.obj["metadata"]["name"] for change in itertools.islice(changes, 2)}
    assert again == {"llama", "other"}


@pytest.mark.parametrize("fault", [*BREAKS, 410])
def test_a_watch_that_cannot_start_lists_anew(client: Client, kube: KubeServer, fault: Any) -> None:
    kube.faults.add(fault, watch=True)
    changes = client.watch(RAY_JOB, "default")
    client.apply(gang()[1])
    assert next(changes).obj["metadata"]["name"] == "llama"
    client.apply(gang("other")[1])
    assert "other" in {change.obj["metadata"]["name"] for change in itertools.islice(changes, 2 if fault == 410 else 1)}


def test_a_change_ends_a_wait_early(client: Client, kube: KubeServer) -> None:
    with Wakeups(client, Gang(name="llama", namespace="default")) as wakeups:
        client.apply(gang()[1])
        wakeups.wait(60.0)
    assert kube.store.find("rayjobs.ray.io", "llama", "default")


def test_logs_and_services_are_read_through_the_server(client: Client, kube: KubeServer) -> None:
    client.apply(gang()[0])
    kube.backends["default", "services", "llama-http:8000"] = lambda method, path, _, body: (
        503,
        f"{method} {path} {body.decode()}".encode(),
    )
    assert client.through_service("llama-http", 8000, "/readyz", "default") == (503, "GET /readyz ")
    asked = client.through_service("llama-http", 8000, "/api/jobs/", "default", method="POST", body={"a": 1})
    assert asked == (503, 'POST /api/jobs/ {"a": 1}')
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": {}}
    kube.store.create("pods", pod)
    kube.logs["default", "p", False] = "one\ntwo\nthree\n"
    assert client.logs("p", "default", lines=2) == "two\nthree\n"
    with pytest.raises(Invalid, match="waiting to start"):
        client.logs("p", "default", previous=True)

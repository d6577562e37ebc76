"""The rules of the fake that clients rely on, asked of its store."""

import threading
from typing import Any

import pytest

from tests.kube.errors import StatusError
from tests.kube.patches import json_patch, merge_patch
from tests.kube.samples import gang
from tests.kube.server import KubeServer
from tests.kube.store import Write

Object = dict[str, Any]
JOBS = "rayjobs.ray.io"
APPLY = Write(manager="a", validation="Strict")


def applied(kube: KubeServer, job: Object, manager: str = "a", *, force: bool = False) -> Object:
    return kube.store.apply(JOBS, "llama", "default", job, Write(manager=manager, validation="Strict"), force=force)


def refused(code: int, call: Any, *arguments: Any, **rest: Any) -> StatusError:
    with pytest.raises(StatusError) as caught:
        call(*arguments, **rest)
    assert caught.value.code == code
    return caught.value


def test_a_name_can_be_taken_once(kube: KubeServer) -> None:
    kube.store.create(JOBS, gang()[1])
    assert refused(409, kube.store.create, JOBS, gang()[1]).reason == "AlreadyExists"


def test_a_violation_is_told_with_its_path(kube: KubeServer) -> None:
    job = gang()[1]
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    error = refused(422, kube.store.create, JOBS, job)
    assert error.causes[0]["field"] == "spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus"


def test_defaults_of_the_schema_are_filled_in(kube: KubeServer) -> None:
    job = gang()[1]
    del job["spec"]["submissionMode"]
    assert kube.store.create(JOBS, job)["spec"]["submissionMode"] == "K8sJobMode"


def test_unknown_fields_are_dropped_unless_strict(kube: KubeServer) -> None:
    job = gang()[1]
    job["spec"]["mood"] = "good"
    assert "mood" in refused(400, kube.store.create, JOBS, job, Write(validation="Strict")).message
    assert "mood" not in kube.store.create(JOBS, job)["spec"]


def test_an_update_of_an_older_version_is_a_conflict(kube: KubeServer) -> None:
    old = kube.store.create(JOBS, gang()[1])
    kube.store.change(JOBS, "llama", "default", lambda obj: {**obj, "spec": {**obj["spec"], "backoffLimit": 1}})
    assert refused(409, kube.store.change, JOBS, "llama", "default", lambda _: old).reason == "Conflict"


def test_only_the_spec_raises_the_generation_and_only_the_subresource_sets_the_status(kube: KubeServer) -> None:
    kube.store.create(JOBS, gang()[1])

    def change(obj: Object) -> Object:
        return {**obj, "status": {"jobStatus": "RUNNING"}, "spec": {**obj["spec"], "backoffLimit": 7}}

    through_status = kube.store.change(JOBS, "llama", "default", change, Write(subresource="status"))
    assert through_status["metadata"]["generation"] == 1
    assert "backoffLimit" not in through_status["spec"] or through_status["spec"]["backoffLimit"] != 7
    assert through_status["status"]["jobStatus"] == "RUNNING"
    past_status = kube.store.change(JOBS, "llama", "default", lambda o: {**change(o), "status": {"jobStatus": "X"}})
    assert past_status["metadata"]["generation"] == 2
    assert past_status["status"]["jobStatus"] == "RUNNING"


def test_a_dry_run_stores_nothing(kube: KubeServer) -> None:
    kube.store.create(JOBS, gang()[1], Write(dry_run=True))
    assert kube.store.find(JOBS, "llama", "default") is None


def test_applying_twice_changes_nothing(kube: KubeServer) -> None:
    first = applied(kube, gang()[1])
    assert applied(kube, gang()[1])["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_what_its_owner_no_longer_applies_goes_and_what_others_own_stays(kube: KubeServer) -> None:
    both, mine = gang()[1], gang()[1]
    both["metadata"]["labels"]["team"] = "red"
    both["spec"]["backoffLimit"] = 3
    applied(kube, both)
    other = {"apiVersion": "ray.io/v1", "kind": "RayJob", "spec": {"backoffLimit": 3}}
    applied(kube, other, "b")
    after = applied(kube, mine)
    assert "team" not in after["metadata"]["labels"]
    assert after["spec"]["backoffLimit"] == 3


def test_a_different_value_for_anothers_field_is_a_conflict_until_forced(kube: KubeServer) -> None:
    applied(kube, gang()[1])
    changed = gang(image="registry/gangway:2")[1]
    error = refused(409, applied, kube, changed, "b")
    assert {cause["message"] for cause in error.causes} == {'conflict with "a"'}
    applied(kube, changed, "b", force=True)
    assert "image" in refused(409, applied, kube, gang()[1]).message


def test_finalizers_hold_a_deleted_object_until_they_are_gone(kube: KubeServer) -> None:
    job = gang()[1]
    job["metadata"]["finalizers"] = ["example.com/hold"]
    kube.store.create(JOBS, job)
    kube.store.delete(JOBS, "llama", "default")
    assert kube.store.get(JOBS, "llama", "default")["metadata"]["deletionTimestamp"]

    def freed(obj: Object) -> Object:
        return {**obj, "metadata": {**obj["metadata"], "finalizers": []}}

    kube.store.change(JOBS, "llama", "default", freed)
    assert kube.store.find(JOBS, "llama", "default") is None


def test_what_an_object_owns_goes_with_it(kube: KubeServer) -> None:
    owner = kube.store.create(JOBS, gang()[1])
    reference = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": "llama", "uid": owner["metadata"]["uid"]}
    service = gang()[0]
    service["metadata"]["ownerReferences"] = [reference]
    kube.store.create("services", service)
    kube.store.delete(JOBS, "llama", "default")
    assert kube.store.find("services", "llama-http", "default") is None


def test_a_version_older_than_the_log_is_gone(kube: KubeServer) -> None:
    kube.store.compact()
    assert refused(410, kube.store.events_after, 1, 0.0).reason == "Expired"


def test_a_waiting_reader_is_woken_by_a_change(kube: KubeServer) -> None:
    version, got = kube.store.version, []
    reader = threading.Thread(target=lambda: got.extend(kube.store.events_after(version, 30.0)))
    reader.start()
    kube.store.create(JOBS, gang()[1])
    reader.join(30.0)
    assert [event.kind for event in got] == ["ADDED"]


def test_patches_follow_their_rfcs() -> None:
    assert merge_patch({"a": {"b": 1, "c": 2}}, {"a": {"b": None, "d": [1]}}) == {"a": {"c": 2, "d": [1]}}
    operations = [
        {"op": "test", "path": "/a/0", "value": 1},
        {"op": "add", "path": "/a/-", "value": 3},
        {"op": "remove", "path": "/a/0"},
        {"op": "move", "from": "/b~1c", "path": "/d"},
        {"op": "replace", "path": "/e", "value": 9},
    ]
    assert json_patch({"a": [1, 2], "b/c": 5, "e": 0}, operations) == {"a": [2, 3], "d": 5, "e": 9}
    with pytest.raises(StatusError, match="missing path"):
        json_patch({}, [{"op": "remove", "path": "/nothing"}])

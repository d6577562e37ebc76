"""`up` of a gang that is there: others have written to it meanwhile, and what they have added is no change."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from cluster.errors import ConflictError, RoomError
from cluster.k8s.names import LAST_APPLIED
from cluster.status.snapshot import Gang
from tests.kube.run import Run
from tests.kube.samples import gang
from tests.kube.store import Write

Object = dict[str, Any]
JOBS = "rayjobs.ray.io"
QUEUED = {"kueue.x-k8s.io/queue-name": "team"}


def job(scene: Run) -> Object:
    return scene.world.store.get(JOBS, "llama", "default")


def worker_group(scene: Run) -> Object:
    group: Object = job(scene)["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    return group


def owners(obj: Object, field: str) -> set[str]:
    return {row["manager"] for row in obj["metadata"]["managedFields"] if field in str(row["fieldsV1"])}


@pytest.fixture
def served(run: Callable[..., Run]) -> Run:
    scene = run()
    scene.world.add_nodes("a", "b")
    scene.up()
    scene.lines.clear()
    return scene


@pytest.fixture
def queued(run: Callable[..., Run]) -> Run:
    """A job that Kueue holds back."""
    scene = run(wanted=Gang(name="llama", namespace="default", scheduler="kueue"), batch_scheduler="")
    scene.world.add_nodes("a", "b", labels={"kubernetes.io/os": "linux"})
    scene.world.queue_by_kueue()
    scene.fails(RoomError, documents=gang(labels=QUEUED))
    scene.lines.clear()
    return scene


def test_the_operator_owns_the_worker_groups_after_its_first_write(served: Run) -> None:
    assert worker_group(served)["scaleStrategy"] == {}
    assert owners(job(served), "f:workerGroupSpecs") == {"kuberay-operator"}


def test_the_same_file_is_unchanged_after_the_operator_has_written_the_job_back(served: Run) -> None:
    before = job(served)["metadata"]["resourceVersion"]
    served.world.server.calls.clear()
    served.up()
    assert "unchanged RayJob llama" in served.told
    assert "unchanged Service llama-http" in served.told
    assert [call for call in served.world.server.calls if call[0] == "PATCH"] == []
    assert job(served)["metadata"]["resourceVersion"] == before


def test_what_the_operator_writes_in_another_form_is_no_change(run: Callable[..., Run]) -> None:
    documents = gang()
    cluster = documents[1]["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        container = group["template"]["spec"]["containers"][0]
        container["resources"]["limits"] |= {"memory": "8192Mi", "cpu": "4000m"}
        container["env"] = [{"name": "EMPTY", "value": ""}]
    scene = run()
    scene.world.add_nodes("a", "b")
    scene.up(documents)
    assert worker_group(scene)["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] == "8Gi"
    scene.lines.clear()
    scene.up(documents)
    assert "unchanged RayJob llama" in scene.told


def test_a_change_beside_the_worker_groups_is_applied_without_force_and_keeps_what_the_operator_added(
    served: Run,
) -> None:
    served.up(gang(labels={"team": "red"}))
    assert "changed RayJob llama\n    metadata.labels.team: (none) -> red" in served.told
    assert job(served)["metadata"]["labels"]["team"] == "red"
    assert worker_group(served)["scaleStrategy"] == {}
    served.lines.clear()
    served.up(gang(labels={"team": "red"}))
    assert "unchanged RayJob llama" in served.told


def test_a_changed_template_is_refused_for_its_own_sake_and_not_for_the_owners(served: Run) -> None:
    with pytest.raises(ConflictError, match="up --recreate") as caught:
        served.up(gang(image="registry/gangway:2"))
    assert "registry/gangway:1 -> registry/gangway:2" in str(caught.value)
    assert "scaleStrategy" not in str(caught.value)
    served.up(gang(image="registry/gangway:2"), recreate=True)
    assert {pod["spec"]["containers"][0]["image"] for pod in served.world.pods()} == {"registry/gangway:2"}


def test_what_kueue_has_put_into_the_pods_is_no_change_and_stays(queued: Run) -> None:
    queued.world.kueue_admits("llama")
    queued.up(gang(labels=QUEUED))
    assert "unchanged RayJob llama" in queued.told
    queued.up(gang(labels=QUEUED | {"team": "red"}))
    template = worker_group(queued)["template"]
    assert template["spec"]["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert template["spec"]["tolerations"] == [{"key": "flavor", "operator": "Exists"}]
    assert template["metadata"]["labels"]["kueue.x-k8s.io/podset"] == "ranks"
    head = job(queued)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head["tolerations"] == [{"key": "flavor", "operator": "Exists"}]


def test_a_job_that_kueue_holds_back_has_no_pods_to_spare_and_is_changed_in_place(queued: Run) -> None:
    queued.fails(RoomError, documents=gang(labels=QUEUED))
    assert "unchanged RayJob llama" in queued.told
    queued.fails(RoomError, documents=gang(labels=QUEUED, image="registry/gangway:2"))
    assert "changed RayJob llama" in queued.told
    assert worker_group(queued)["template"]["spec"]["containers"][0]["image"] == "registry/gangway:2"
    assert worker_group(queued)["scaleStrategy"] == {}


def test_what_is_no_longer_wanted_goes_and_what_others_added_beside_it_stays(queued: Run) -> None:
    documents = gang(labels=QUEUED)
    pod = documents[1]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    pod["nodeSelector"] = {"pool": "gpu"}
    pod["tolerations"] = [{"key": "old", "operator": "Exists"}]
    queued.fails(RoomError, documents=documents)

    def inject(held: Object) -> Object:
        spec = held["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
        spec["nodeSelector"]["zone"] = "b"
        spec["tolerations"].append({"key": "new", "operator": "Exists"})
        return held

    queued.world.store.change(JOBS, "llama", "default", inject, Write(manager="an operator not yet written"))
    queued.fails(RoomError, documents=gang(labels=QUEUED))
    template = worker_group(queued)["template"]["spec"]
    assert template["nodeSelector"] == {"zone": "b"}
    assert template["tolerations"] == [{"key": "new", "operator": "Exists"}]


def test_a_value_of_ours_that_another_changed_within_its_list_is_not_taken_back_unless_told(queued: Run) -> None:
    def fewer(held: Object) -> Object:
        held["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = 1
        return held

    queued.world.store.change(JOBS, "llama", "default", fewer, Write(manager="somebody"))
    with pytest.raises(ConflictError, match=r'conflict with "somebody": \.spec\.rayClusterSpec\.workerGroupSpecs'):
        queued.up(gang(labels=QUEUED))
    with pytest.raises(RoomError):
        queued.up(gang(labels=QUEUED), force=True)
    assert worker_group(queued)["replicas"] == 2


def test_what_another_adds_between_comparing_and_applying_stays(queued: Run) -> None:
    rows = queued.lifecycle.compare(documents := gang(labels=QUEUED, image="registry/gangway:2"))
    queued.world.store.change(JOBS, "llama", "default", _labelled, Write(manager="late"))
    queued.lifecycle._apply(documents, rows)
    template = worker_group(queued)["template"]
    assert template["spec"]["containers"][0]["image"] == "registry/gangway:2"
    assert template["metadata"]["labels"]["late"] == "yes"


def _labelled(held: Object) -> Object:
    held["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["metadata"]["labels"]["late"] = "yes"
    return held


def test_a_gang_that_was_applied_by_other_means_is_unchanged_too(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a", "b")
    for document in copy.deepcopy(gang()):
        scene.client.apply(document)
    scene.world.run(3)
    scene.up()
    assert "unchanged RayJob llama" in scene.told
    assert LAST_APPLIED not in job(scene)["metadata"].get("annotations", {})

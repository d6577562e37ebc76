"""What can happen to a gang that runs or is being changed or removed; time and HTTP as in `test_scenarios`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.errors import ConflictError, WaitTimeout, WorkloadError
from cluster.k8s.api_errors import Conflict, Denied
from cluster.k8s.names import HOST_INDEX, MANAGED_BY, MANAGER
from tests.kube.run import WANTED, Run
from tests.kube.samples import gang
from tests.kube.scene import add_event

Object = dict[str, Any]


def test_a_worker_that_dies_in_service_is_replaced_and_the_others_stay(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a", "b")
    scene.up()
    dead, survivor = scene.world.pods()
    scene.world.kubelet.kill(dead["metadata"]["name"], "default")
    scene.world.step()
    cluster = scene.world.store.select("rayclusters.ray.io")[0]
    assert cluster["status"]["state"] == "ready", "ready is sticky: a waiter must not rely on it"
    now = {pod["metadata"]["labels"][HOST_INDEX]: pod["metadata"]["uid"] for pod in scene.world.pods()}
    assert survivor["metadata"]["uid"] in now.values()
    assert dead["metadata"]["uid"] not in now.values()
    assert now.keys() == {"0", "1"}
    scene.up()
    assert len(scene.world.pods()) == 2


def test_a_head_that_dies_is_made_anew_and_up_waits_for_it(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a", "b")
    scene.up()
    head = scene.world.pods("head")[0]
    scene.world.kubelet.kill(head["metadata"]["name"], "default")
    scene.world.step()
    scene.lines.clear()
    scene.up()
    assert scene.world.pods("head")[0]["metadata"]["uid"] != head["metadata"]["uid"]
    assert "joining Ray" in scene.told


def test_pods_lost_while_coming_up_are_told_with_how_they_ended(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a", "b", "c")
    scene.world.app_start_s = 1000.0

    def wait(seconds: float) -> None:
        scene.world.run(seconds)
        if any(
            pod["status"].get("phase") == "Running" and pod["spec"]["nodeName"] == "b" for pod in scene.world.pods()
        ):
            scene.world.lose_node("b")
            scene.world.run(2)

    scene.lifecycle.wait = wait
    told = scene.fails(WorkloadError)
    assert "Ray container terminated status: exit code 137 (NodeLost)" in told


def test_a_model_that_never_answers_is_told_at_the_deadline_with_its_state(run: Callable[..., Run]) -> None:
    scene = run(wanted=replace(WANTED, ready_s=60.0))
    scene.world.add_nodes("a", "b")
    scene.world.app_start_s = 1e9
    scene.world.app_state = "rank 3 waits in all_reduce"
    told = scene.fails(WaitTimeout)
    assert "rank 3 waits in all_reduce" in told
    assert "NCCL_SOCKET_IFNAME" in told


def test_a_job_that_fails_is_told_with_its_reason(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a", "b")
    scene.world.app_start_s = 1e9

    def wait(seconds: float) -> None:
        scene.world.run(seconds)
        if scene.world.clock.now > 20:
            assert scene.world.operator
            scene.world.operator.fail_job("llama", "default", reason="AppFailed", message="exit code 1")

    scene.lifecycle.wait = wait
    assert "the job has failed: AppFailed: exit code 1" in scene.fails(WorkloadError)
    scene.world.app_start_s = 5.0
    scene.lifecycle.wait = scene.world.run
    scene.up(recreate=True)
    assert scene.lines[-1].startswith("ready")


@pytest.mark.parametrize("runs", [False, True])
def test_a_wait_for_a_jobs_end_outlasts_a_preempted_pod(run: Callable[..., Run], runs: bool) -> None:
    scene = run()
    scene.world.add_nodes("a", "b", "c")
    scene.lifecycle.create(gang())
    lost: list[float] = []

    def wait(_: float) -> None:
        scene.world.step()
        (job,) = scene.world.store.select("rayjobs.ray.io")
        assert scene.world.operator
        begun = job.get("status", {}).get("jobStatus") == "RUNNING"
        placed = [pod for pod in scene.world.pods() if pod["spec"].get("nodeName") == "b"]
        if placed and begun == runs and not lost:
            add_event(scene.world.store, scene.world.clock, placed[0], "Preempted", "by a pod of higher priority")
            scene.world.store.delete("pods", placed[0]["metadata"]["name"], "default")
            lost.append(scene.world.clock.now)
        elif lost and scene.world.clock.now > lost[0] + 30:
            scene.world.operator.finish_job("llama", "default")

    scene.lifecycle.wait = wait
    scene.lifecycle.wait_ended()
    assert scene.lines[-1] == "the job has succeeded"


def test_a_live_template_is_not_altered_unless_told(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a", "b")
    scene.up()
    told = scene.fails(ConflictError, documents=gang(image="registry/gangway:2"))
    assert "registry/gangway:1 -> registry/gangway:2" in told
    assert "up --recreate" in told
    assert {pod["spec"]["containers"][0]["image"] for pod in scene.world.pods()} == {"registry/gangway:1"}
    scene.up(gang(image="registry/gangway:2"), recreate=True)
    assert {pod["spec"]["containers"][0]["image"] for pod in scene.world.pods()} == {"registry/gangway:2"}


def test_fields_of_another_manager_are_not_taken_unless_told(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a", "b")
    scene.up()

    def repoint(service: Object) -> Object:
        service["spec"]["selector"]["app.kubernetes.io/component"] = "elsewhere"
        return service

    scene.world.store.change("services", "llama-http", "default", repoint)
    with pytest.raises(Conflict, match=r"spec\.selector"):
        scene.up()
    scene.up(force=True)
    service = scene.world.store.get("services", "llama-http", "default")
    assert service["spec"]["selector"]["app.kubernetes.io/component"] == "head"


def test_a_right_that_is_missing_is_named(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.server.rbac.denied.add(("patch", "rayjobs.ray.io"))
    with pytest.raises(Denied, match=r'cannot patch resource "rayjobs" in API group "ray\.io"'):
        scene.up()


def test_down_leaves_nothing(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a", "b")
    labelled = gang(labels={MANAGED_BY: MANAGER})
    labelled[0]["metadata"]["labels"][MANAGED_BY] = MANAGER
    scene.up(labelled)
    assert scene.lifecycle.down()
    left = [key for key in scene.world.store.objects if key[1] == "default" and key[0] != "events"]
    assert left == []
    assert not scene.lifecycle.down()


def test_a_finalizer_that_holds_down_is_named(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a", "b")
    labelled = gang(labels={MANAGED_BY: MANAGER})
    labelled[1]["metadata"]["finalizers"] = ["ray.io/gcs-ft-redis-cleanup-finalizer"]
    scene.up(labelled)
    with pytest.raises(WaitTimeout, match=r"RayJob llama waits for ray\.io/gcs-ft-redis-cleanup-finalizer"):
        scene.lifecycle.down()
    assert scene.world.clock.now < 400


@pytest.mark.parametrize("code", [401, 403, 409, 500])
def test_a_refusal_at_any_call_is_told_and_running_again_finishes(run: Callable[..., Run], code: int) -> None:
    scene = run()
    scene.world.add_nodes("a", "b")
    documents, faults = gang(labels={MANAGED_BY: MANAGER}), scene.world.server.faults
    documents[0]["metadata"]["labels"][MANAGED_BY] = MANAGER
    for call in range(0, 40, 3):
        faults.rules.clear()
        faults.hits.clear()
        faults.add(code, skip=call, message=f"refused at call {call}")
        told = scene.attempt(documents)
        ((method, path),) = faults.hits
        if not told and _ends_nothing(code, method, path):
            assert scene.lines[-1].split(":")[0] == "ready"
        else:
            assert f"refused at call {call}" in told
        scene.world.server.faults.rules.clear()
        scene.up(documents)
        assert scene.lines[-1].startswith("ready")
        assert scene.lifecycle.down()


def _ends_nothing(code: int, method: str, path: str) -> bool:
    """Whether a refusal may be passed over: `/readyz` may answer so itself while it is not ready, not everyone may see
    the operator, and where somebody else has written meanwhile it is looked at again.
    """
    unseen = code == 403 and path.endswith("/deployments")
    return path.endswith("/proxy/readyz") or unseen or (code == 409 and method == "PATCH")


def comes_up(run: Callable[..., Run], **spec: Any) -> Run:
    """A gang that serves, all of which `down` may delete."""
    scene = run()
    scene.world.add_nodes("a", "b")
    documents = gang(labels={MANAGED_BY: MANAGER})
    documents[0]["metadata"]["labels"][MANAGED_BY] = MANAGER
    documents[1]["spec"]["rayClusterSpec"] |= {"authOptions": {"mode": "token"}}
    documents[1]["spec"] |= {"shutdownAfterJobFinishes": True} | spec
    scene.up(documents)
    scene.lines.clear()
    scene.world.server.calls.clear()
    return scene


def steps(scene: Run) -> list[str]:
    """Calls that change something, as the verb and what it is done to."""
    calls = [(method, path.split("?")[0].rsplit("/", 2)) for method, path in scene.world.server.calls]
    return [f"{method} {parts[-1] if method == 'POST' else parts[-2]}" for method, parts in calls if method != "GET"]


def test_down_lets_the_job_end_before_it_deletes(run: Callable[..., Run]) -> None:
    scene = comes_up(run)
    seen: list[str] = []
    delete = scene.client.delete

    def noted(kind: Any, name: str, namespace: str = "") -> bool:
        seen.append(scene.world.store.get("rayjobs.ray.io", "llama", "default")["status"]["jobStatus"])
        scene.client.delete = delete  # type: ignore[method-assign]
        return delete(kind, name, namespace)

    scene.client.delete = noted  # type: ignore[method-assign]
    assert scene.lifecycle.down()
    assert seen == ["STOPPED"]
    assert steps(scene)[:2] == ["POST stop", "DELETE rayjobs"]
    assert scene.lines[0].startswith("stopping the job")


def test_making_a_gang_anew_lets_the_job_end_first(run: Callable[..., Run]) -> None:
    scene = comes_up(run)
    changed = gang(labels={MANAGED_BY: MANAGER}, image="registry/gangway:2")
    changed[0]["metadata"]["labels"][MANAGED_BY] = MANAGER
    scene.up(changed, recreate=True)
    assert [step for step in steps(scene) if not step.startswith("PATCH")][:2] == ["POST stop", "DELETE rayjobs"]


def test_down_deletes_a_job_that_cannot_be_told_to_stop_and_says_what_that_costs(run: Callable[..., Run]) -> None:
    scene = comes_up(run)
    scene.world.server.rbac.denied.add(("get", "secrets"))
    assert scene.lifecycle.down()
    assert "cannot be told to stop, so requests that run are cut off" in scene.lines[0]
    assert 'cannot get resource "secrets"' in scene.lines[0]
    assert not scene.lifecycle.down()


def test_down_does_not_wait_for_ever_for_a_job_that_does_not_end(run: Callable[..., Run]) -> None:
    scene = comes_up(run)
    assert scene.world.operator
    scene.world.operator.stop_s = 1e9
    assert scene.lifecycle.down()
    assert "the job has not ended in time" in scene.told
    assert scene.world.clock.now < 400


def test_a_proxy_that_reaches_nobody_is_told_at_the_deadline_with_the_policy_to_change(run: Callable[..., Run]) -> None:
    scene = run(wanted=replace(WANTED, ready_s=60.0))
    scene.world.add_nodes("a", "b")
    scene.world.unreachable = True
    told = scene.fails(WaitTimeout)
    assert "network_policy.allow_cidrs" in told
    assert "connection timed out" in told

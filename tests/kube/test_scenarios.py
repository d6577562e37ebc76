"""What can keep a gang from coming up, each told in the sentence that a person needs.

Time is the world's own: `wait` moves it. Everything between the client and the store is real HTTP.
"""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

from cluster.commands.report import report
from cluster.errors import PlatformError, RoomError, WorkloadError
from cluster.k8s.kinds import LOCAL_QUEUE
from cluster.status.snapshot import Gang
from tests.kube.run import WANTED, Run
from tests.kube.samples import gang
from tests.kube.test_doctor import add_cluster_queue

Object = dict[str, Any]


def test_a_gang_that_fits_comes_up_and_tells_each_step(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a", "b")
    scene.up()
    steps = [
        "created RayJob llama",
        "waiting for KubeRay",
        "starting: 0 of 3",
        "joining Ray",
        "loading the model",
        "ready",
    ]
    places = [next(n for n, line in enumerate(scene.lines) if line.startswith(step)) for step in steps]
    assert places == sorted(places)


def test_running_up_again_changes_nothing(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a", "b")
    scene.up()
    version = scene.world.store.get("rayjobs.ray.io", "llama", "default")["metadata"]["generation"]
    scene.lines.clear()
    scene.up()
    assert "unchanged RayJob llama" in scene.told
    assert scene.world.store.get("rayjobs.ray.io", "llama", "default")["metadata"]["generation"] == version


def test_one_node_short_says_which_node_has_what(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a")
    scene.world.add_nodes("b", gpus=4)
    told = scene.fails(RoomError)
    assert "need 2 nodes x 8 GPUs of NVIDIA-H100-80GB-HBM3, 1 fit" in told
    assert "node a has 8 of 8 GPUs free" in told
    assert "node b has 4 of 4 GPUs free" in told


def test_nothing_of_a_gang_is_placed_when_a_part_has_no_room(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a")
    scene.fails(RoomError)
    assert not [pod for pod in scene.world.store.select("pods") if "nodeName" in pod["spec"]]


def test_a_cordoned_node_is_named(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a")
    scene.world.add_nodes("b", cordoned=True)
    assert "node b is cordoned (kubectl uncordon it)" in scene.fails(RoomError)


def test_a_tainted_node_is_named_with_its_taint(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a")
    scene.world.add_nodes("b", taints=[{"key": "team", "value": "red", "effect": "NoSchedule"}])
    assert "node b has the taint team=red:NoSchedule" in scene.fails(RoomError)


def test_whoever_holds_the_gpus_is_named(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a", "b")
    resources = {"limits": {"nvidia.com/gpu": "5"}}
    spec = {"nodeName": "b", "containers": [{"name": "c", "image": "i", "resources": resources}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "other", "namespace": "default"}, "spec": spec}
    scene.world.store.create("pods", pod | {"status": {"phase": "Running"}}, keep_status=True)
    assert "node b has 3 of 8 GPUs free (default/other holds 5)" in scene.fails(RoomError)


def test_who_is_patient_waits_for_a_node_that_comes_late(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a")
    scene.lifecycle.patient = True
    late = [30.0]

    def wait(seconds: float) -> None:
        scene.world.run(seconds)
        if late and scene.world.clock.now >= late[0]:
            late.clear()
            scene.world.add_nodes("b")

    scene.lifecycle.wait = wait
    scene.up()
    assert "placing: 0 of 3" in scene.told


def test_an_image_that_cannot_be_pulled_is_told_with_the_registrys_line(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a", "b")
    scene.world.kubelet.bad_images["registry/gangway:1"] = "401 Unauthorized"
    told = scene.fails(WorkloadError)
    assert "ImagePullBackOff" in told
    assert "401 Unauthorized" in told
    assert "on node" in told


def test_a_rank_killed_for_memory_is_told_with_its_last_lines(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a", "b")

    def wait(seconds: float) -> None:
        scene.world.run(seconds)
        for pod in scene.world.pods()[1:]:
            if pod["status"].get("phase") == "Running":
                name = pod["metadata"]["name"]
                scene.world.server.logs["default", name, False] = "loading shard 3\n"
                scene.world.kubelet.kill(name, "default", reason="OOMKilled", code=137)

    scene.lifecycle.wait = wait
    told = scene.fails(WorkloadError)
    assert "OOMKilled" in told
    assert "(host " in told
    assert "loading shard 3" in scene.told


def test_a_quota_is_told_with_its_numbers(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a", "b")
    scene.world.limit_gpus("default", 8)
    told = scene.fails(RoomError)
    assert "exceeded quota: gpus" in told
    assert "limited: requests.nvidia.com/gpu=8" in told


def test_without_an_operator_it_says_that_nobody_reconciles(run: Callable[..., Run]) -> None:
    scene = run(operator=False)
    told = scene.fails(PlatformError)
    assert "nobody is reconciling it: no KubeRay operator is to be seen" in told
    assert scene.world.clock.now < 60


def test_an_operator_started_for_no_scheduler_is_found_out(run: Callable[..., Run]) -> None:
    scene = run(batch_scheduler="")
    scene.world.add_nodes("a", "b")
    told = scene.fails(PlatformError)
    assert "default-scheduler, not volcano" in told
    assert "--batch-scheduler=volcano" in told


def test_kueue_holding_a_job_back_is_told_with_the_quota(run: Callable[..., Run]) -> None:
    wanted = Gang(name="llama", namespace="default", scheduler="kueue")
    scene = run(wanted=wanted, batch_scheduler="")
    scene.world.queue_by_kueue()

    def wait(seconds: float) -> None:
        scene.world.run(seconds)
        scene.world.kueue_refuses("llama")

    scene.lifecycle.wait = wait
    documents = gang(labels={"kueue.x-k8s.io/queue-name": "team"})
    told = scene.fails(RoomError, documents=documents)
    assert "Kueue holds llama back in queue team" in told
    assert "16 > 8" in told


def test_a_queue_that_is_too_small_is_told_with_its_name_and_both_amounts(run: Callable[..., Run]) -> None:
    wanted = replace(WANTED, queue="research", total=(("nvidia.com/gpu", Fraction(16)),))
    scene = run(wanted=wanted)
    scene.world.add_nodes("a")
    scene.world.server.install(("queues", "scheduling.volcano.sh"))
    queue = {"apiVersion": "scheduling.volcano.sh/v1beta1", "kind": "Queue", "metadata": {"name": "research"}}
    scene.world.store.create(
        "queues.scheduling.volcano.sh", queue | {"spec": {"weight": 1, "capability": {"nvidia.com/gpu": 8}}}
    )
    told = scene.fails(RoomError)
    assert "queue research is too small: Queue research allows 8 of nvidia.com/gpu" in told
    assert "the gang asks for 16" in told


def test_a_quota_that_kueue_could_never_grant_is_told_with_its_name_and_both_amounts(run: Callable[..., Run]) -> None:
    total = (("nvidia.com/gpu", Fraction(16)),)
    wanted = Gang(name="llama", namespace="default", scheduler="kueue", queue="team", total=total)
    scene = run(wanted=wanted, batch_scheduler="")
    scene.world.queue_by_kueue()
    scene.world.server.install(("localqueues", "kueue.x-k8s.io"))
    local = {"apiVersion": LOCAL_QUEUE.api_version, "kind": "LocalQueue", "spec": {"clusterQueue": "all"}}
    scene.world.store.create(
        "localqueues.kueue.x-k8s.io", local | {"metadata": {"name": "team", "namespace": "default"}}
    )
    add_cluster_queue(scene.world.server, 8)
    told = scene.fails(RoomError, documents=gang(labels={"kueue.x-k8s.io/queue-name": "team"}))
    assert "queue team is too small: ClusterQueue all allows 8 of nvidia.com/gpu, and the gang asks for 16" in told


def test_without_any_node_the_sentence_is_whole(run: Callable[..., Run]) -> None:
    told = run().fails(RoomError)
    assert "0 fit: no node is to be seen; the scheduler says: 0/0 nodes are available" in told


def test_a_head_that_ends_at_once_is_told_with_its_last_words(run: Callable[..., Run]) -> None:
    """KubeRay deletes it in the moment in which it ends, and its log is gone with it."""
    scene = run()
    scene.world.add_nodes("a", "b")
    documents = gang()
    head = documents[1]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["terminationMessagePolicy"] = "FallbackToLogsOnError"

    def wait(_: float) -> None:
        scene.world.step()
        for pod in scene.world.pods("head"):
            if pod["status"].get("phase") == "Running":
                name = pod["metadata"]["name"]
                scene.world.kubelet.kill(name, "default", log="usage: ray\nNo such option: --dashbord-host\n")
                scene.world.step()

    scene.lifecycle.wait = wait
    told = scene.fails(WorkloadError, documents=documents)
    assert "exit code 1 (Error)" in told
    assert "ContainerStateTerminated" not in told
    assert "No such option: --dashbord-host" in scene.told
    assert "has written no log" not in scene.told


def test_a_proxy_without_a_gateway_is_said_to_be_one(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a", "b")
    scene.world.no_gateway = True

    def wait(seconds: float) -> None:
        scene.world.run(seconds)
        scene.world.no_gateway = not any("no gateway yet" in line for line in scene.lines)

    scene.lifecycle.wait = wait
    scene.up()
    assert "loading the model: the proxy runs, no gateway yet" in scene.lines


def test_after_a_failure_the_stage_says_so(run: Callable[..., Run]) -> None:
    scene = run()
    scene.world.add_nodes("a", "b")
    documents = gang()
    documents[1]["spec"]["shutdownAfterJobFinishes"] = True
    scene.up(documents)
    assert scene.world.operator
    scene.world.operator.fail_job("llama", "default", reason="AppFailed", message="exit code 1")
    scene.world.run(2)
    assert report(scene.client, WANTED)["stage"] == "failed: AppFailed"


def test_a_spec_that_kuberay_rejects_is_told_with_its_event(run: Callable[..., Run]) -> None:
    scene = run()
    documents = gang()
    documents[1]["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["labels"] = "a=b"
    told = scene.fails(PlatformError, documents=documents)
    assert "KubeRay rejects the spec: rayStartParams['labels'] is not supported" in told

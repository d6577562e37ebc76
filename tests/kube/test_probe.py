"""The probe: its Job on a fake cluster, and its script between two real processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.config.loader import load_spec
from cluster.config.spec import ClusterSpec
from cluster.doctor import all_reduce_script
from cluster.doctor.probe import probe_documents, probe_lines, probe_name, run_probe
from cluster.errors import RoomError, WorkloadError
from cluster.k8s.client import Client
from cluster.k8s.kinds import JOB
from tests.kube.clock import ManualClock
from tests.kube.scene import set_status
from tests.kube.server import KubeServer
from tests.kube.test_doctor import CONFIG, plain, set_scene

Object = dict[str, Any]
RESULT = {
    "backend": "nccl",
    "all_reduce": [{"bytes": 8192, "ms": 0.05, "gb_per_s": 0.16}],
    "ranks": [{"rank": 0, "address": "10.0.0.1", "interface": "eth0"}],
}


@pytest.fixture
def spec(kube: KubeServer) -> ClusterSpec:
    found = load_spec(CONFIG)
    set_scene(kube, found)
    return found


def end_job(kube: KubeServer, spec: ClusterSpec, log: str, phase: str, **status: int) -> None:
    """What the Job controller and the kubelets do in the end."""
    name, pods = probe_name(spec.name), kube.store.select("pods", spec.namespace)
    job = kube.store.get("jobs.batch", name, spec.namespace)
    if not pods:
        pod = plain("v1", "Pod", f"{name}-0-x", spec.namespace)
        pod["metadata"]["labels"] = {"app.kubernetes.io/instance": name}
        kube.store.create("pods", pod | {"spec": {"containers": []}, "status": {"phase": phase}}, keep_status=True)
    kube.logs[spec.namespace, f"{name}-0-x", False] = log
    set_status(kube.store, job, "jobs.batch", **status)


def test_the_measurement_is_returned_and_nothing_is_left(kube: KubeServer, client: Client, spec: ClusterSpec) -> None:
    log = f"NCCL INFO eth0\n{json.dumps(RESULT)}\n"
    answer = run_probe(client, spec, lambda _: end_job(kube, spec, log, "Succeeded", succeeded=2), ManualClock())
    assert answer == RESULT
    assert client.find(JOB, probe_name(spec.name), spec.namespace) is None
    assert any("eth0" in line for line in probe_lines(answer))


def test_pods_that_fail_are_told_with_their_last_lines(kube: KubeServer, client: Client, spec: ClusterSpec) -> None:
    with pytest.raises(WorkloadError, match="no route to host"):
        run_probe(client, spec, lambda _: end_job(kube, spec, "no route to host\n", "Failed", failed=1), ManualClock())
    assert client.find(JOB, probe_name(spec.name), spec.namespace) is None


def test_pods_without_room_end_the_probe(kube: KubeServer, client: Client, spec: ClusterSpec) -> None:
    def refuse(_: float) -> None:
        end_job(kube, spec, "", "Pending")
        pod = kube.store.select("pods", spec.namespace)[0]
        rows = [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes"}]
        set_status(kube.store, pod, "pods", conditions=rows)

    with pytest.raises(RoomError):
        run_probe(client, spec, refuse, ManualClock())


def test_it_asks_for_one_gpu_on_each_node_and_needs_nothing_that_up_makes(spec: ClusterSpec) -> None:
    job = probe_documents(spec)[1]
    pod = job["spec"]["template"]["spec"]
    assert job["spec"]["completions"] == 2
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "serviceAccountName" not in pod
    assert [volume["name"] for volume in pod["volumes"]] == ["shm"]


@pytest.mark.parametrize("name", ["", "eth0", "enp129s0f0np015"])
def test_what_a_rank_tells_of_itself_is_understood(name: str) -> None:
    end = all_reduce_script.packed("192.0.2.7", name, 64 << 20)
    told = {"rank": 3, "address": "192.0.2.7", "interface": name, "shm_bytes": 64 << 20}
    assert all_reduce_script.unpacked(3, end) == told


def test_an_interface_that_is_no_text_is_shown() -> None:
    told = all_reduce_script.unpacked(0, b"\xff" * all_reduce_script.END.size)
    assert json.loads(json.dumps(told))["interface"] == "\\xff" * 16


def test_two_processes_measure_each_other() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    script = Path(all_reduce_script.__file__).read_text()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**shared, "RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    answer = json.loads(said[0].strip().splitlines()[-1])
    assert [row["bytes"] for row in answer["all_reduce"]] == list(all_reduce_script.SIZES)
    assert [row["rank"] for row in answer["ranks"]] == [0, 1]
    assert answer["ranks"][1]["address"] == "127.0.0.1"
    assert {row["shm_bytes"] for row in answer["ranks"]} == {all_reduce_script.shm_bytes()}

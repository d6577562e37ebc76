"""Pods of the head and of the ranks."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from cluster.config.spec import ClusterSpec
from cluster.manifests.environment import head_environment, worker_environment
from cluster.manifests.render import render
from serving.api import entrance
from serving.runtime.ray_cluster.environment import ENTRANCE
from tests.cluster.conftest import MakeSpec
from tests.cluster.test_manifest import EVERYTHING, pod_templates


def pods(spec: ClusterSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    head, worker = pod_templates(render(spec)[-1])
    return head["spec"], worker["spec"]


def values(variables: list[dict[str, Any]]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in variables if "value" in variable}


def test_a_pod_with_ranks_takes_all_gpus_of_a_node_of_its_own(make: MakeSpec) -> None:
    _, worker = pods(make())
    resources = worker["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == "8"
    assert resources["limits"] == resources["requests"]
    (term,) = worker["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in worker["tolerations"]


def test_ray_sees_exactly_the_room_of_the_pods_own_ranks(make: MakeSpec) -> None:
    cluster = render(make())[-1]["spec"]["rayClusterSpec"]
    assert cluster["workerGroupSpecs"][0]["rayStartParams"] == {"num-cpus": "16", "num-gpus": "8"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_a_dead_rank_is_never_restarted_alone(make: MakeSpec) -> None:
    assert {pod["restartPolicy"] for pod in pods(make())} == {"Never"}


def test_probes_ask_the_raylet_and_the_heads_never_the_model(make: MakeSpec) -> None:
    head, worker = (pod["containers"][0] for pod in pods(make()))
    for probe in (head["readinessProbe"], head["livenessProbe"], worker["livenessProbe"]):
        assert probe["httpGet"] == {"path": "/api/healthz", "port": 52365}


@contextmanager
def answering(code: int) -> Iterator[int]:
    """The port of a server that answers every GET so."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    ("raylet", "gateway", "ready"),
    [
        (200, 200, True),
        (200, 503, False),  # the group loads or recovers
        (200, 404, True),  # a proxy without an application: no command has begun to serve
        (200, None, True),  # nobody listens there: KubeRay waits for this pod before it submits the command
        (503, 200, False),
        (None, 200, False),
    ],
)
def test_a_pod_with_ranks_is_ready_unless_the_gateway_says_that_the_group_is_not(
    make: MakeSpec, raylet: int | None, gateway: int | None, ready: bool
) -> None:
    with answering(raylet or 200) as raylet_port, answering(gateway or 200) as gateway_port:
        spec = make(serving__http={"port": gateway_port if gateway else 1})
        *shell, script = pods(spec)[1]["containers"][0]["readinessProbe"]["exec"]["command"]
        script = script.replace("52365", str(raylet_port) if raylet else "1")
        environment = {**os.environ, "FQ_RAY_IP": "127.0.0.1"}
        done = subprocess.run([*shell, script], env=environment, capture_output=True, check=False)
    assert (done.returncode == 0) is ready
    assert done.stderr == b""


WAITING = "while :; do sleep 0.05; done"
SERVING = f"""exec -a '/opt/bin/python /opt/bin/gangway serve /etc/serving.yaml' \\
    bash -c 'trap "sleep 0.3; echo drained; exit" TERM; {WAITING}' &"""
RAY = f"""exec -a '/opt/bin/python /opt/bin/ray start --block' \\
    bash -c 'trap "echo ray ended; exit" TERM; {WAITING}' &"""
"""Processes of the names that the hooks look for."""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root for a pid namespace")
@pytest.mark.parametrize(("which", "told"), [(0, ["drained", "ray ended"]), (1, ["ray ended"])])
def test_before_its_end_a_head_lets_the_command_drain_and_a_worker_ends_ray_at_once(
    make: MakeSpec, which: int, told: list[str]
) -> None:
    container = pods(make())[which]["containers"][0]
    *_, script = container["lifecycle"]["preStop"]["exec"]["command"]
    inside = f'{RAY if which else SERVING + RAY}\nsleep 0.3; bash -c "$HOOK"; wait'
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", inside],
        env={**os.environ, "HOOK": script},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.splitlines() == told


def test_a_pod_with_ranks_ends_in_seconds_and_the_head_has_its_drain(make: MakeSpec) -> None:
    head, worker = pods(make(serving__fault={"drain_timeout_s": 30}))
    assert (head["terminationGracePeriodSeconds"], worker["terminationGracePeriodSeconds"]) == (60, 5)
    for variables in (head_environment(make()), worker_environment(make())):
        assert values(variables)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "0"


def test_a_pod_leaves_a_lost_node_after_the_setting(make: MakeSpec) -> None:
    for pod in pods(make(timeouts={"node_lost_s": 17})):
        rows = {row["key"]: row for row in pod["tolerations"] if row["effect"] == "NoExecute"}
        assert rows.keys() == {"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"}
        assert {row["tolerationSeconds"] for row in rows.values()} == {17}


def test_every_pod_tells_what_its_processes_log_and_keeps_the_end_of_it(make: MakeSpec) -> None:
    """KubeRay puts its own command behind this one with `&&`, so it must be a whole one, and not wait."""
    for as_json in (False, True):
        for pod in pods(make(serving__observe={"log_json": as_json})):
            (command,) = pod["containers"][0]["command"]
            assert subprocess.run(["bash", "-n", "-c", f"{command} && true"], check=False).returncode == 0
            assert ("--json" in command) is as_json
            assert pod["containers"][0]["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_pods_meet_the_restricted_pod_security_standard_unless_rdma_is_used(make: MakeSpec) -> None:
    for pod in pods(make()):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["containers"][0]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["automountServiceAccountToken"] is False
        assert "hostNetwork" not in pod
    head, worker = pods(make(**EVERYTHING))
    assert worker["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert head["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_devices_secrets_and_networks_are_the_ranks_and_the_configuration_the_heads(make: MakeSpec) -> None:
    head, worker = pods(make(**EVERYTHING))
    assert worker["containers"][0]["resources"]["limits"]["rdma/hca"] == "4"
    assert [volume["name"] for volume in worker["volumes"]] == ["shm", "model", "shard-cache"]
    assert [volume["name"] for volume in head["volumes"]] == ["config", "model", "keys"]
    assert head["nodeSelector"] == {"pool": "cpu"}
    assert worker["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "pool": "gpu"}
    annotations = pod_templates(render(make(**EVERYTHING))[-1])[1]["metadata"]["annotations"]
    assert annotations["k8s.v1.cni.cncf.io/networks"] == "net/rail0,net/rail1"


def test_shared_memory_is_as_large_as_the_setting(make: MakeSpec) -> None:
    _, worker = pods(make(resources={"shm": "7Gi"}))
    (volume,) = (volume for volume in worker["volumes"] if volume["name"] == "shm")
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "7Gi"}


def test_a_model_in_the_image_is_mounted_from_nowhere(make: MakeSpec) -> None:
    _, worker = pods(make(storage__model={"claim": None}))
    assert "model" not in {volume["name"] for volume in worker["volumes"]}


def test_a_size_of_the_shard_cache_limits_it(make: MakeSpec) -> None:
    _, worker = pods(make(storage={"shard_cache_size": "900Gi"}))
    assert {"name": "shard-cache", "emptyDir": {"sizeLimit": "900Gi"}} in worker["volumes"]


def test_a_node_that_is_cut_off_is_given_up_in_seconds_by_every_pod(make: MakeSpec) -> None:
    for variables in (head_environment(make()), worker_environment(make())):
        found = values(variables)
        assert found["RAY_health_check_period_ms"] == "1000"
        assert found["RAY_health_check_failure_threshold"] == "5"


def test_serve_bounds_bodies_in_every_pod(make: MakeSpec) -> None:
    spec = make(serving__http={"max_body_bytes": 5000})
    for found in (values(head_environment(spec)), values(worker_environment(spec))):
        assert found[entrance.MAX_BODY_BYTES] == "5000"
        assert found["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == ENTRANCE


def test_the_job_has_the_time_to_drain(make: MakeSpec) -> None:
    spec = make(serving__fault={"drain_timeout_s": 59.5})
    assert values(head_environment(spec))["RAY_JOB_STOP_WAIT_TIME_S"] == "75"
    assert pods(spec)[0]["terminationGracePeriodSeconds"] == 90


def test_gloo_is_told_names_of_interfaces_only(make: MakeSpec) -> None:
    plain = values(worker_environment(make(network={"interface": "eth0"})))
    assert (plain["NCCL_SOCKET_IFNAME"], plain["GLOO_SOCKET_IFNAME"]) == ("eth0", "eth0")
    other = values(worker_environment(make(network={"interface": "^docker"})))
    assert other["NCCL_SOCKET_IFNAME"] == "^docker"
    assert "GLOO_SOCKET_IFNAME" not in other
    assert "NCCL_SOCKET_IFNAME" not in values(worker_environment(make()))


def test_what_the_user_sets_stays(make: MakeSpec) -> None:
    spec = make(env={"RAY_health_check_period_ms": "3000"})
    assert values(worker_environment(spec))["RAY_health_check_period_ms"] == "3000"


def test_ranks_on_cpus_ask_for_no_gpu_and_hear_nothing_of_nccl(make: MakeSpec) -> None:
    spec = make(nodes={"gpus_per_node": 0}, serving__parallel={"gpus_per_rank": 0})
    _, worker = pods(spec)
    assert worker["containers"][0]["resources"]["limits"].keys() == {"cpu", "memory"}
    assert "nvidia.com/gpu" not in {row["key"] for row in worker["tolerations"]}
    assert not any(name.startswith("NCCL") for name in values(worker_environment(spec)))


def test_the_hosts_network_comes_with_the_clusters_names(make: MakeSpec) -> None:
    for pod in pods(make(network={"host_network": True}, network_policy={"enabled": False})):
        assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")

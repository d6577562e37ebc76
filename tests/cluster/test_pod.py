"""Pods of the head and of the ranks."""

from typing import Any

from cluster.environment import head_environment, worker_environment
from cluster.manifest import render
from cluster.spec import ClusterSpec
from serving.api import entrance
from serving.runtime.environment import ENTRANCE
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


def test_probes_ask_the_raylet_and_never_the_model(make: MakeSpec) -> None:
    for pod in pods(make()):
        for probe in ("readinessProbe", "livenessProbe"):
            assert pod["containers"][0][probe]["httpGet"] == {"path": "/api/healthz", "port": 52365}


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
    assert [volume["name"] for volume in worker["volumes"]] == ["shm", "model", "shard-cache", "keys"]
    assert [volume["name"] for volume in head["volumes"]] == ["config"]
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
    assert "tolerations" not in worker
    assert not any(name.startswith("NCCL") for name in values(worker_environment(spec)))


def test_the_hosts_network_comes_with_the_clusters_names(make: MakeSpec) -> None:
    for pod in pods(make(network={"host_network": True}, network_policy={"enabled": False})):
        assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")

"""Pod templates of the head and of the ranks. Pure.

Both end with their Ray process (restartPolicy Never): a pod that fails is replaced by KubeRay, with a Ray node that
knows nothing of the old one. Probes ask the raylet, as KubeRay submits a RayJob's command, which loads the model, only
when all pods are ready; `ranks_ready` says what more the pods with ranks ask, and how they still get there.
"""

import math
from typing import Any

from cluster.config.sections import Amount
from cluster.config.spec import ClusterSpec
from cluster.k8s.names import COMPONENT, CONFIG_HASH, GPU, HEAD, INSTANCE, WORKER
from cluster.manifests.environment import STOP_MARGIN_S, head_environment, worker_environment
from cluster.manifests.gang_scheduling import pod_priority, worker_annotations
from cluster.manifests.volumes import Mounted, head_volumes, worker_volumes

AGENT_PORT = 52365

RAY_LOGS = "/tmp/ray/session_latest/logs"  # noqa: S108  Ray's own place
"""Where Ray lets each process write into a file, of which the pod's own output knows nothing."""

HEAD_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}
"""KubeRay's own head service offers those that are named here."""

WORKER_GRACE_S = 5
"""From a worker pod's deletion to its end at the latest, in seconds: its ranks have nothing to hand over. A pod that is
still in its init container always takes all of it."""

_END_RAY = "pkill -TERM -f '[r]ay start '"
"""KubeRay's bash, the first process of the pod, ignores SIGTERM, so that a pod would last its whole grace period. The
raylet tells the head that it goes: the others hear of it at once, and not after 6 s of silence."""

_END_LOOP = "pkill -f '^[^ ]*python[^ ]* -m [c]luster.manifests.serve_loop '"
"""First, so that no other command is submitted in this one's place."""

_END_COMMAND = "gangway='^[^ ]*python[^ ]* [^ ]*/[g]angway (serve|batch) '; pkill -TERM -f \"$gangway\""
_COMMAND_RUNS = 'pgrep -f "$gangway" >/dev/null'

LOST_NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
"""What Kubernetes puts on a node that answers no more."""

KEEP = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}


def head_template(spec: ClusterSpec, config_hash: str) -> dict[str, Any]:
    """The head: Ray's control, the command, and the proxy that takes requests. It holds no rank."""
    ports = HEAD_PORTS | {"http": spec.serving.http.port}
    container = _container(spec, "ray-head", spec.resources.head, {}, head_volumes(spec)) | {
        "env": head_environment(spec),
        "ports": [{"containerPort": port, "name": name} for name, port in ports.items()],
    }
    pod = _pod(spec, container, head_volumes(spec)) | {
        "terminationGracePeriodSeconds": math.ceil(spec.serving.fault.drain_timeout_s) + 2 * STOP_MARGIN_S,
        "tolerations": _node_lost(spec),
    }
    container["readinessProbe"] = _raylet_lives(failures=6)
    end_loop = ""
    if spec.ray.kind == "cluster":
        container["command"] = [f"{_beside_ray(spec)} && {_serve_loop(spec)}"]
        end_loop = f"{_END_LOOP}; "
    container["lifecycle"] = _before_the_end(
        f"{end_loop}{_END_COMMAND} && while {_COMMAND_RUNS}; do sleep 0.5; done; {_END_RAY}"
    )
    if spec.nodes.head_selector:
        pod["nodeSelector"] = dict(spec.nodes.head_selector)
    return {"metadata": _metadata(spec, HEAD, config_hash, {}), "spec": pod}


def worker_template(spec: ClusterSpec, config_hash: str) -> dict[str, Any]:
    """A pod with ranks: alone on its node, with all of its GPUs."""
    volumes = worker_volumes(spec)
    container = _container(spec, "ray-worker", spec.resources.worker, _devices(spec), volumes)
    container |= {"env": worker_environment(spec), "ports": [{"containerPort": 8080, "name": "metrics"}]}
    container["readinessProbe"] = ranks_ready(spec)
    container["lifecycle"] = _before_the_end(_END_RAY)
    pod = _pod(spec, container, volumes) | {
        "terminationGracePeriodSeconds": WORKER_GRACE_S,
        "affinity": _one_a_node(spec),
        "tolerations": _tolerations(spec),
    }
    if selector := _selector(spec):
        pod["nodeSelector"] = selector
    if spec.nodes.gpus_per_node and spec.nodes.runtime_class:
        pod["runtimeClassName"] = spec.nodes.runtime_class
    annotations = worker_annotations(spec.gang)
    if spec.network.attachments:
        annotations["k8s.v1.cni.cncf.io/networks"] = ",".join(spec.network.attachments)
    return {"metadata": _metadata(spec, WORKER, config_hash, annotations), "spec": pod}


def _metadata(spec: ClusterSpec, component: str, config_hash: str, annotations: dict[str, str]) -> dict[str, Any]:
    kept = KEEP if spec.disruption.protect else {}
    return {
        "labels": {INSTANCE: spec.name, COMPONENT: component},
        "annotations": {CONFIG_HASH: config_hash} | kept | annotations,
    }


def _pod(spec: ClusterSpec, container: dict[str, Any], volumes: list[Mounted]) -> dict[str, Any]:
    user = spec.security.run_as_user
    pod: dict[str, Any] = {
        "serviceAccountName": spec.name,
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "securityContext": {
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "runAsNonRoot": user != 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [mounted.volume for mounted in volumes],
    }
    if spec.image.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in spec.image.pull_secrets]
    if (priority := pod_priority(spec.gang)) is not None:
        pod["priorityClassName"] = priority
    if spec.network.host_network:
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    return pod


def _container(
    spec: ClusterSpec, name: str, amount: Amount, devices: dict[str, str], volumes: list[Mounted]
) -> dict[str, Any]:
    """Requests equal limits, so that no neighbour takes anything away; devices need it so.

    The end of the log is kept as the container's last message: KubeRay deletes a head that has ended within a second,
    and its log with it.
    """
    resources = {"cpu": amount.cpu, "memory": amount.memory} | devices
    return {
        "name": name,
        "image": spec.image.ref,
        "imagePullPolicy": spec.image.pull_policy,
        "command": [_beside_ray(spec)],
        "resources": {"limits": resources, "requests": dict(resources)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": _capabilities(devices)},
        "volumeMounts": [mounted.mount for mounted in volumes],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "livenessProbe": _raylet_lives(failures=24) | {"initialDelaySeconds": 30},
    }


def _beside_ray(spec: ClusterSpec) -> str:
    """What KubeRay runs in the pod's shell before `ray start`, which it adds with `&&`: it stays in the background.

    With a trap bash does not become its last command, `ray start`, but stays the pod's first process. That one has to
    wait for orphans, which Ray's does not do: Ray's dashboard would take a command that has ended for one that runs,
    and a job that was told to stop would be stopped after 45 s only.
    """
    as_json = " --json" if spec.serving.observe.log_json else ""
    return f"trap : EXIT && (python -m cluster.manifests.pod_output {RAY_LOGS}{as_json} &)"


def _serve_loop(spec: ClusterSpec) -> str:
    """On the head of a standing cluster, as `_beside_ray`: nobody else submits the command there."""
    return f"(python -m cluster.manifests.serve_loop {spec.nodes.count} {spec.ray.backoff_limit} {spec.entrypoint} &)"


def ranks_ready(spec: ClusterSpec) -> dict[str, Any]:
    """Of a pod with ranks: its raylet lives, and the head's gateway does not say that the group is not ready.

    So that the disruption budget, which counts pods that are ready, lets none go while the group loads or recovers.
    Where no gateway answers, as before the first command, the raylet alone decides: nothing that Ray or KubeRay needs
    to come up waits for the model. KubeRay does not take `ready` back from a cluster, so a group that recovers in pods
    that are not ready is not disturbed. In bash, which KubeRay needs as well, as it starts in milliseconds.
    """
    ask = (
        'answer() { exec 3<>"/dev/tcp/$1/$2" && printf "GET $3 HTTP/1.0\\r\\nHost: $1\\r\\n\\r\\n" >&3 && '
        'read -r _ code _ <&3 && echo "$code"; } 2>/dev/null; '
        f'test "$(answer 127.0.0.1 {AGENT_PORT} /api/healthz)" = 200 && '
        f'test "$(answer "$FQ_RAY_IP" {spec.serving.http.port} /readyz)" != 503'
    )
    return _each({"exec": {"command": ["/bin/bash", "-c", ask]}}, failures=2)


def _raylet_lives(failures: int) -> dict[str, Any]:
    """The agent's answer, which needs no token. Both die with the raylet."""
    return _each({"httpGet": {"path": "/api/healthz", "port": AGENT_PORT}}, failures)


def _each(ask: dict[str, Any], failures: int) -> dict[str, Any]:
    return ask | {"periodSeconds": 5, "timeoutSeconds": 4, "failureThreshold": failures}


def _before_the_end(script: str) -> dict[str, Any]:
    """KubeRay and the kubelet wait for it, within the grace period."""
    return {"preStop": {"exec": {"command": ["/bin/bash", "-c", script]}}}


def _capabilities(devices: dict[str, str]) -> dict[str, list[str]]:
    """None; RDMA pins memory, which needs one."""
    return {"drop": ["ALL"]} | ({"add": ["IPC_LOCK"]} if devices.keys() - {GPU} else {})


def _devices(spec: ClusterSpec) -> dict[str, str]:
    devices = {GPU: str(spec.nodes.gpus_per_node)} if spec.nodes.gpus_per_node else {}
    if spec.network.rdma_resource is not None:
        devices[spec.network.rdma_resource] = str(spec.network.rdma_count)
    return devices


def _one_a_node(spec: ClusterSpec) -> dict[str, Any]:
    """By our own labels: those of KubeRay are generated under a RayJob."""
    term = {
        "labelSelector": {"matchLabels": {INSTANCE: spec.name, COMPONENT: WORKER}},
        "topologyKey": "kubernetes.io/hostname",
    }
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def _selector(spec: ClusterSpec) -> dict[str, str]:
    product = {"nvidia.com/gpu.product": spec.nodes.product} if spec.nodes.product else {}
    return product | dict(spec.nodes.selector)


def _node_lost(spec: ClusterSpec) -> list[dict[str, Any]]:
    """Instead of the 300 s that Kubernetes adds by itself."""
    row = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": spec.timeouts.node_lost_s}
    return [{"key": key, **row} for key in LOST_NODE_TAINTS]


def _tolerations(spec: ClusterSpec) -> list[dict[str, Any]]:
    gpu = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}] if spec.nodes.gpus_per_node else []
    own = [taint.model_dump(exclude_none=True) for taint in spec.nodes.tolerations]
    return gpu + own + _node_lost(spec)

"""The sections of a cluster configuration, each setting documented beneath itself. `spec` joins and checks them."""

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cluster.config.types import AbsolutePath, Key, LabelValue, Namespace, ObjectName, Quantity, Version
from serving.config.sources import Section


class Toleration(Section):
    """A taint that the ranks' pods may run on."""

    key: Key
    """Key of the taint."""

    operator: Literal["Exists", "Equal"] = "Exists"
    """Exists: whatever its value; Equal: this `value` only."""

    value: str | None = None
    """Value of the taint, for `Equal`."""

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; all effects when not set."""

    @model_validator(mode="after")
    def _value_only_where_it_is_compared(self) -> Self:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError("operator Equal needs a value, and Exists takes none")
        return self


class NodesConfig(Section):
    """The Kubernetes nodes that hold the model: one pod on each, with all of the node's GPUs."""

    count: int = Field(ge=1, le=512)
    """Nodes, and so pods with ranks. The Ray head is one more pod, which holds none."""

    spares: int = Field(default=0, ge=0, le=64)
    """Pods beyond `count`, on nodes of their own with as many GPUs: they have joined Ray, and a lost pod's ranks go
    there at once instead of waiting for a new pod. On CPUs one has a process with everything imported as well. 0: none
    is paid for. KubeRay submits the command when every pod has been ready once, spares too; from then on the group
    serves while a spare is missing. YuniKorn and KAI place the gang without waiting for spares; Volcano, Kueue and
    in-tree know one size of gang only, which includes them."""

    gpus_per_node: int = Field(default=0, ge=0, le=16)
    """GPUs of each node, all of which its pod asks for. 0: the ranks compute on CPUs, `tensor_parallel_size / count` a
    pod."""

    product: LabelValue | None = None
    """GPU model that a node must have, as its label `nvidia.com/gpu.product` says, such as NVIDIA-H100-80GB-HBM3."""

    selector: dict[Key, LabelValue] = Field(default_factory=dict)
    """Labels that the ranks' nodes must have."""

    head_selector: dict[Key, LabelValue] = Field(default_factory=dict)
    """Labels that the head's node must have: name nodes without GPUs, where there are some."""

    tolerations: list[Toleration] = Field(default_factory=list)
    """Taints that the ranks' pods may run on, besides `nvidia.com/gpu`, which pods with GPUs always may."""

    runtime_class: ObjectName | None = None
    """RuntimeClass of pods with GPUs: `nvidia` on k3s and RKE2, not set where the GPU operator makes it the default."""

    @property
    def pods(self) -> int:
        """Pods that can hold ranks: those that do, and the spares."""
        return self.count + self.spares


class ImageConfig(Section):
    """The container image, with this project and Ray in it."""

    ref: str = Field(pattern=r"^[^\s:@]\S*(:[\w.-]+|@sha256:[0-9a-f]{64})$")
    """Image with a tag or, better, a digest: every pod must run the very same."""

    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When the kubelet fetches it. Never: it was loaded into the nodes, as `kind load` does."""

    pull_secrets: list[ObjectName] = Field(default_factory=list)
    """Secrets with the registry's credentials."""


class RayConfig(Section):
    """How KubeRay runs it."""

    version: Version
    """Ray's version, which must be the image's; 2.53.0 or later."""

    kind: Literal["job", "cluster"] = "job"
    """job: a RayJob, which KubeRay forms again as a whole when it ends. cluster: a RayCluster that stays; its head runs
    the command, and so does a new head after it. The scheduler `scheduler-plugins` takes nothing else."""

    backoff_limit: int = Field(default=3, ge=0)
    """How often a command that has failed for good is begun again: by KubeRay with a whole new cluster (job), or by the
    head (cluster)."""

    gang_wait_s: int = Field(default=3600, ge=1)
    """RayJob: longest wait for all pods, in seconds, before the job fails. Long enough for new nodes to start."""


class Amount(Section):
    """What one pod gets: it asks for exactly that, so that no neighbour can take it away."""

    cpu: Quantity
    """CPU cores."""

    memory: Quantity
    """Main memory, with what is written to /dev/shm."""


class ResourcesConfig(Section):
    """Sizes of the pods."""

    worker: Amount
    """A pod with ranks. `parallel.cpus_per_rank` for each is the least; more leaves room for Ray."""

    head: Amount = Amount(cpu="4", memory="8Gi")
    """The Ray head, with the proxy that takes requests and the gateway that tokenizes them. On one machine the gateway
    took 0.65 GiB, Serve's processes 0.5 and Ray's own 1; the rest is for tokenizers, requests and Ray's object store.
    Not measured on a cluster."""

    shm: Quantity = "16Gi"
    """Size of /dev/shm of a pod with ranks: Ray's object store, NCCL's and our own sums. Part of `memory`."""


class NetworkConfig(Section):
    """What the ranks talk over."""

    interface: str | None = Field(default=None, pattern=r"^[\^=]{0,2}[\w.,-]+$")
    """NCCL_SOCKET_IFNAME. Not set: each pod finds the interface that carries its own address. A prefix such as `eth`
    or, for NCCL, `=eth0` and `^docker`. Given plainly it is gloo's too."""

    ib_hca: str | None = None
    """NCCL_IB_HCA: which RDMA devices, such as `mlx5_0,mlx5_1`."""

    ib_gid_index: int | None = Field(default=None, ge=0)
    """NCCL_IB_GID_INDEX, for RoCE where NCCL's own choice is wrong."""

    rdma_resource: Key | None = None
    """Name of the RDMA resource as the site's device plugin calls it, such as `rdma/rdma_shared_device_a`."""

    rdma_count: int = Field(default=1, ge=1)
    """How many of them a pod asks for."""

    attachments: list[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*/[a-z0-9][a-z0-9.-]*(@[\w-]+)?$")]] = Field(
        default_factory=list
    )
    """Secondary networks as `namespace/name` of NetworkAttachmentDefinitions."""

    host_network: bool = False
    """Use the nodes' own network. No NetworkPolicy holds there, and ports must be free on the nodes."""

    nccl_debug: Literal["VERSION", "WARN", "INFO", "TRACE"] = "WARN"
    """NCCL_DEBUG. INFO says which interface and transport were chosen."""


class GangConfig(Section):
    """Who places the pods, all or none of them."""

    scheduler: Literal["none", "volcano", "yunikorn", "kueue", "kai", "scheduler-plugins", "in-tree"] = "none"
    """The gang scheduler that the KubeRay operator was started for (Kueue needs no such start). none: pods are placed
    one by one, and two gangs can each hold half of what both need. With scheduler-plugins KubeRay takes no RayJob: it
    needs `ray.kind: cluster`, and there are no batch jobs."""

    queue: LabelValue | None = None
    """Queue: Volcano's Queue, YuniKorn's queue, Kueue's LocalQueue, KAI's queue. Kueue and KAI need one."""

    priority_class: ObjectName | None = None
    """PriorityClass of the pods; for Kueue a WorkloadPriorityClass."""

    topology: str | None = None
    """KAI: name of the Topology that `topology_level` is in."""

    topology_level: str | None = None
    """Keep the ranks near each other. Kueue, KAI: the node label of the level; Volcano: the highest tier, a number."""

    topology_required: bool = True
    """Wait for such nodes; false: prefer them."""


class VolumeConfig(Section):
    """A folder of the pods that outlives them."""

    mount_path: AbsolutePath
    """Folder in the pod."""

    claim: ObjectName | None = None
    """PersistentVolumeClaim. The model's must be ReadOnlyMany or ReadWriteMany, as several nodes mount it."""

    host_path: AbsolutePath | None = None
    """Folder on every node."""

    sub_path: str | None = Field(default=None, pattern=r"^[^/][^:]*$")
    """Folder within the claim that is mounted."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.claim and self.host_path:
            raise ValueError("give claim or host_path, not both")
        if self.sub_path and (not self.claim or ".." in PurePosixPath(self.sub_path).parts):
            raise ValueError("sub_path is a folder within a claim")
        return self


class StorageConfig(Section):
    """Volumes."""

    model: VolumeConfig
    """Where the pods find the model: `model.path` of the serving configuration is in its mount_path, or is that.
    Neither claim nor host_path: it is part of the image."""

    batch: VolumeConfig | None = None
    """Where a batch job's input and output are: mounted on its head, and writable for `security.run_as_user`."""

    shard_cache_host_path: AbsolutePath | None = None
    """Folder on each node that keeps the ranks' shards, so that a new pod on it loads in seconds. It must be writable
    for `security.run_as_user`. Not set: they are kept as long as the pod lives."""

    shard_cache_size: Quantity | None = None
    """Size limit of the pod's own shard cache; no limit when not set."""

    @model_validator(mode="after")
    def _rows_are_kept(self) -> Self:
        if self.batch and not (self.batch.claim or self.batch.host_path):
            raise ValueError("storage.batch needs a claim or a host_path: what a pod keeps itself goes with it")
        if self.batch and self.batch.mount_path == self.model.mount_path:
            raise ValueError("storage.batch and storage.model need a mount_path each")
        return self


class SecurityConfig(Section):
    """Who may ask, and what the pods may do."""

    api_keys_secret: ObjectName | None = None
    """Secret with the bearer keys, one a line, in its key `keys`. Not set: the serving configuration must say
    `security.insecure`."""

    ray_token_secret: ObjectName | None = None
    """Secret with Ray's cluster token in its key `auth_token`. Not set: KubeRay makes one for each cluster."""

    run_as_user: int = Field(default=1000, ge=0)
    """User id of all processes, and group id of volumes. The image's own is 1000. RDMA may need 0, as IPC_LOCK is only
    given to root unless the container runtime lifts the limit of locked memory."""


class ServiceConfig(Section):
    """How requests come in."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Kind of the Service. Its port is `http.port`, and it leads to the head, which always has a proxy."""

    annotations: dict[Key, str] = Field(default_factory=dict)
    """For load balancers. Where one checks health, name the path /readyz: the head is ready before the model is."""


class NetworkPolicyConfig(Section):
    """Who may talk to the pods."""

    enabled: bool = True
    """Render a NetworkPolicy: pods of the gang among themselves, DNS, and what is named here."""

    allow_namespaces: list[Namespace] = Field(default_factory=list)
    """Namespaces whose pods may send requests, besides the gang's own."""

    allow_cidrs: list[Annotated[str, Field(pattern=r"^[0-9a-fA-F.:]+/\d{1,3}$")]] = Field(default_factory=list)
    """Addresses that may send requests, for load balancers and the API server's proxy."""

    operator_namespace: Namespace = "kuberay-system"
    """Where the KubeRay operator runs: it submits the command and asks how it stands."""

    metrics_namespaces: list[Namespace] = Field(default_factory=list)
    """Namespaces that may read metrics of Ray (port 8080) and of the gateway."""


class DisruptionConfig(Section):
    """What may end a pod on purpose."""

    protect: bool = True
    """Guard pods against evictions (two PodDisruptionBudgets) and consolidation by autoscalers. The head, whose end
    ends the gang, is never evicted: `kubectl drain` of its node waits until `gangway cluster down`. Of the pods with
    ranks one at a time may be, which costs a pause, and none while the group is not ready."""


class TimeoutsConfig(Section):
    """How long the commands wait."""

    ready_s: float = Field(default=1800.0, gt=0)
    """Until `/readyz` answers, in seconds: placing, pulling the image, loading the model."""

    delete_s: float = Field(default=300.0, gt=0)
    """Until all is gone, in seconds."""

    node_lost_s: int = Field(default=30, ge=0)
    """How long a pod stays on a node that answers no more, in seconds after Kubernetes has noticed (it takes 40 to
    50). Kubernetes' own is 300. Ray has given the node up long before; longer only helps where nodes come back by
    themselves and hold a shard cache."""


class SecretKey(Section):
    """One value of a Secret."""

    secret: ObjectName
    """Name of the Secret."""

    key: str = Field(pattern=r"^[-._a-zA-Z0-9]+$")
    """Key in it."""

"""Volumes of the pods, each with where it is mounted. Pure."""

from dataclasses import dataclass
from typing import Any

from cluster.names import config_map_name
from cluster.spec import CACHE_FOLDER, CONFIG_FOLDER, KEYS_FOLDER, ClusterSpec


@dataclass(frozen=True)
class Mounted:
    """A volume and its one mount."""

    name: str
    path: str
    source: dict[str, Any]
    read_only: bool = True
    sub_path: str | None = None

    @property
    def volume(self) -> dict[str, Any]:
        """For the pod."""
        return {"name": self.name, **self.source}

    @property
    def mount(self) -> dict[str, Any]:
        """For the container."""
        mount: dict[str, Any] = {"name": self.name, "mountPath": self.path}
        if self.read_only:
            mount["readOnly"] = True
        if self.sub_path is not None:
            mount["subPath"] = self.sub_path
        return mount


def head_volumes(spec: ClusterSpec) -> list[Mounted]:
    """The command on the head reads the serving configuration, and hands it to all ranks itself."""
    return [Mounted("config", str(CONFIG_FOLDER), {"configMap": {"name": config_map_name(spec.name)}})]


def worker_volumes(spec: ClusterSpec) -> list[Mounted]:
    """The model, the shard cache, /dev/shm, and the keys for the gateway, which runs on rank 0's node."""
    volumes = [_shm(spec), *_model(spec), *_cache(spec)]
    if spec.security.api_keys_secret is not None:
        secret = {"secretName": spec.security.api_keys_secret, "items": [{"key": "keys", "path": "keys"}]}
        volumes.append(Mounted("keys", str(KEYS_FOLDER), {"secret": secret}))
    return volumes


def batch_volumes(spec: ClusterSpec) -> list[Mounted]:
    """What the head of a batch job needs besides: the model, whose tokenizer it runs, and where the rows are."""
    batch = spec.storage.batch
    if batch is None:
        return _model(spec)
    source: dict[str, Any] = {"emptyDir": {}}
    if batch.claim is not None:
        source = {"persistentVolumeClaim": {"claimName": batch.claim}}
    elif batch.host_path is not None:
        source = {"hostPath": {"path": batch.host_path, "type": "Directory"}}
    return [*_model(spec), Mounted("batch", batch.mount_path, source, read_only=False, sub_path=batch.sub_path)]


def _shm(spec: ClusterSpec) -> Mounted:
    """Ours, so that KubeRay does not mount one of the size of all memory."""
    room = {"medium": "Memory", "sizeLimit": spec.resources.shm}
    return Mounted("shm", "/dev/shm", {"emptyDir": room}, read_only=False)  # noqa: S108  the path is the point


def _model(spec: ClusterSpec) -> list[Mounted]:
    model = spec.storage.model
    if model.claim is not None:
        claim = {"persistentVolumeClaim": {"claimName": model.claim, "readOnly": True}}
        return [Mounted("model", model.mount_path, claim, sub_path=model.sub_path)]
    if model.host_path is not None:
        return [Mounted("model", model.mount_path, {"hostPath": {"path": model.host_path, "type": "Directory"}})]
    return []


def _cache(spec: ClusterSpec) -> list[Mounted]:
    storage = spec.storage
    if spec.serving.model.shard_cache is None:
        return []
    source: dict[str, Any] = {"emptyDir": {"sizeLimit": storage.shard_cache_size} if storage.shard_cache_size else {}}
    if storage.shard_cache_host_path is not None:
        source = {"hostPath": {"path": storage.shard_cache_host_path, "type": "DirectoryOrCreate"}}
    return [Mounted("shard-cache", str(CACHE_FOLDER), source, read_only=False)]

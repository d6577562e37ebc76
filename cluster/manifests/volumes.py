"""Volumes of the pods, each with where it is mounted. Pure."""

from dataclasses import dataclass
from typing import Any

from cluster.config.sections import VolumeConfig
from cluster.config.spec import CACHE_FOLDER, CONFIG_FOLDER, KEYS_FOLDER, ClusterSpec
from cluster.k8s.names import config_map_name


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
    """The serving configuration, which the command hands to all ranks itself; for the gateway the model, whose
    tokenizer it runs, and the keys.
    """
    config = Mounted("config", str(CONFIG_FOLDER), {"configMap": {"name": config_map_name(spec.name)}})
    return [config, *_model(spec), *_keys(spec)]


def worker_volumes(spec: ClusterSpec) -> list[Mounted]:
    """The model, the shard cache and /dev/shm. Not the keys: only the gateway reads them, and it is on the head."""
    return [_shm(spec), *_model(spec), *_cache(spec)]


def batch_volumes(spec: ClusterSpec) -> list[Mounted]:
    """What the head of a batch job needs besides: where the rows are."""
    batch = spec.storage.batch
    return [] if batch is None else _kept("batch", batch, read_only=False)


def _shm(spec: ClusterSpec) -> Mounted:
    """Ours, so that KubeRay does not mount one of the size of all memory."""
    room = {"medium": "Memory", "sizeLimit": spec.resources.shm}
    return Mounted("shm", "/dev/shm", {"emptyDir": room}, read_only=False)  # noqa: S108  the path is the point


def _keys(spec: ClusterSpec) -> list[Mounted]:
    if spec.security.api_keys_secret is None:
        return []
    secret = {"secretName": spec.security.api_keys_secret, "items": [{"key": "keys", "path": "keys"}]}
    return [Mounted("keys", str(KEYS_FOLDER), {"secret": secret})]


def _model(spec: ClusterSpec) -> list[Mounted]:
    return _kept("model", spec.storage.model, read_only=True)


def _kept(name: str, volume: VolumeConfig, *, read_only: bool) -> list[Mounted]:
    """A claim or a folder of the node; nothing where the image has it."""
    source: dict[str, Any] = {}
    if volume.claim is not None:
        source = {"persistentVolumeClaim": {"claimName": volume.claim, **({"readOnly": True} if read_only else {})}}
    elif volume.host_path is not None:
        source = {"hostPath": {"path": volume.host_path, "type": "Directory"}}
    return [Mounted(name, volume.mount_path, source, read_only, volume.sub_path)] if source else []


def _cache(spec: ClusterSpec) -> list[Mounted]:
    storage = spec.storage
    if spec.serving.model.shard_cache is None:
        return []
    source: dict[str, Any] = {"emptyDir": {"sizeLimit": storage.shard_cache_size} if storage.shard_cache_size else {}}
    if storage.shard_cache_host_path is not None:
        source = {"hostPath": {"path": storage.shard_cache_host_path, "type": "DirectoryOrCreate"}}
    return [Mounted("shard-cache", str(CACHE_FOLDER), source, read_only=False)]

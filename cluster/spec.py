"""A gang on Kubernetes as one configuration, and what in it could never work. `load_spec` is the only way in.

It names a serving configuration, which says what every rank does, and adds where the ranks run. All that can be known
without a cluster is checked here, since KubeRay accepts a wrong resource and then only writes an event about it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from cluster.errors import SpecError
from cluster.rules import complaints
from cluster.settings import (
    DisruptionConfig,
    GangConfig,
    ImageConfig,
    NetworkConfig,
    NetworkPolicyConfig,
    NodesConfig,
    RayConfig,
    ResourcesConfig,
    SecretKey,
    SecurityConfig,
    ServiceConfig,
    StorageConfig,
    TimeoutsConfig,
)
from cluster.values import Namespace, VariableName
from serving.config import Config, load_config
from serving.errors import ConfigError
from serving.settings import Section, explain, override_all, read_yaml

CONFIG_FOLDER = PurePosixPath("/etc/gangway")
CONFIG_FILE = CONFIG_FOLDER / "serving.yaml"
KEYS_FOLDER = PurePosixPath("/etc/gangway-keys")
KEYS_FILE = KEYS_FOLDER / "keys"
CACHE_FOLDER = PurePosixPath("/var/cache/gangway")
"""Places in every pod."""


class ClusterSpec(Section):
    """The whole tree."""

    api_version: Literal["v1"] = "v1"
    """Form of this file."""

    name: str
    """Name of the gang: the RayJob or RayCluster (47 and 53 characters at most), and the prefix of all else."""

    namespace: Namespace = "default"
    """Namespace of everything."""

    serving: Config
    """The serving configuration: in the file its path, counted from the file, or the tree itself."""

    nodes: NodesConfig
    image: ImageConfig
    ray: RayConfig
    resources: ResourcesConfig
    storage: StorageConfig
    network: NetworkConfig = NetworkConfig()
    gang: GangConfig = GangConfig()
    security: SecurityConfig = SecurityConfig()
    service: ServiceConfig = ServiceConfig()
    network_policy: NetworkPolicyConfig = NetworkPolicyConfig()
    disruption: DisruptionConfig = DisruptionConfig()
    timeouts: TimeoutsConfig = TimeoutsConfig()

    env: dict[VariableName, str] = Field(default_factory=dict)
    """Further environment variables of every pod. Never a secret: they can be read in the manifest."""

    secret_env: dict[VariableName, SecretKey] = Field(default_factory=dict)
    """Environment variables whose values are in Secrets."""

    @model_validator(mode="after")
    def _could_work(self) -> Self:
        if (complaint := next(complaints(self), None)) is not None:
            raise ValueError(complaint)
        return self

    @property
    def ranks_per_node(self) -> int:
        """Ranks in each pod: one a GPU, or an equal share of them on CPUs."""
        return self.serving.parallel.tensor_parallel_size // self.nodes.count

    @property
    def entrypoint(self) -> str:
        """The command that serves, to be run on the head."""
        return f"gangway serve {CONFIG_FILE} --address auto"

    def config_in_pods(self) -> Config:
        """The serving configuration as the pods read it: what only Kubernetes decides is filled in."""
        keys = {"api_keys_file": str(KEYS_FILE)} if self.security.api_keys_secret else {}
        tree = self.serving.model_dump(mode="json")
        tree["http"]["host"] = "0.0.0.0"  # noqa: S104  in a pod, behind a Service and a NetworkPolicy
        tree["security"] |= keys
        if tree["model"]["shard_cache"] is not None:
            tree["model"]["shard_cache"] = str(CACHE_FOLDER / "shards")
        tree["model"]["served_name"] = self.serving.model.name
        return load_config(tree)


def load_spec(path: Path, overrides: Sequence[str] = ()) -> ClusterSpec:
    """Read a cluster configuration and the serving configuration that it names, apply overrides, check all of it.

    Overrides are `section.key=value`; `serving.engine.max_running=8` reaches into the serving configuration. Raises
    `SpecError`, or `ConfigError` for a file that cannot be read, with one sentence that names the key.
    """
    tree = override_all(_with_serving(read_yaml(path), path), overrides)
    return make_spec(tree, where=str(path))


def make_spec(tree: Mapping[str, Any], where: str = "cluster configuration") -> ClusterSpec:
    """Check a tree whose `serving` is a tree as well. Raises `SpecError`."""
    try:
        return ClusterSpec.model_validate(tree)
    except ValidationError as error:
        raise SpecError(f"{where}: {explain(error, ClusterSpec)}") from error


def dump_spec(spec: ClusterSpec) -> dict[str, Any]:
    """The whole tree, defaults included, as JSON can hold it; `make_spec` reads it back to an equal one."""
    return spec.model_dump(mode="json")


def _with_serving(tree: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The tree with the serving configuration's own in the place of its path."""
    named = tree.get("serving")
    if not isinstance(named, str):
        return dict(tree)
    file = path.parent / named
    if not file.is_file():
        raise SpecError(f"{path}: serving: there is no file {file}")
    serving = read_yaml(file)
    try:
        load_config(serving)
    except ConfigError as error:
        raise SpecError(f"{file}: {str(error).removeprefix('configuration: ')}") from error
    return {**tree, "serving": serving}

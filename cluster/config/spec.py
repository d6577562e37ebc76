"""A gang on Kubernetes as one configuration: a serving configuration, which says what every rank does, and where the
ranks run. `loader` reads one, and checks what in it could never work.
"""

from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field

from cluster.config.sections import (
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
from cluster.config.types import Namespace, VariableName
from serving.config import Config, load_config
from serving.config.sources import Section

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
    """Name of the gang: the RayJob or RayCluster (47 and 53 characters at most), and the prefix of every other name."""

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

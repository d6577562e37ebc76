"""A cluster configuration that works, as a tree to be changed, and the definitions to hold manifests against."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.config.loader import make_spec
from cluster.config.spec import ClusterSpec
from tests.cluster.definitions import Definition, read_definition

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "tests" / "crds"
CONFIGS = sorted((ROOT / "configs" / "cluster").glob("*.yaml"))

TREE: dict[str, Any] = {
    "name": "gang",
    "namespace": "serving",
    "serving": {
        "model": {"path": "/models/tiny"},
        "parallel": {"tensor_parallel_size": 16, "gpus_per_rank": 1, "cpus_per_rank": 2},
    },
    "nodes": {"count": 2, "gpus_per_node": 8},
    "image": {"ref": "registry.example.com/gangway:0.1.0-ray2.60.0"},
    "ray": {"version": "2.60.0"},
    "resources": {"worker": {"cpu": "32", "memory": "256Gi"}},
    "storage": {"model": {"mount_path": "/models", "claim": "models"}},
    "security": {"api_keys_secret": "keys"},
}

MakeTree = Callable[..., dict[str, Any]]
MakeSpec = Callable[..., ClusterSpec]


def changed_tree(**changes: object) -> dict[str, Any]:
    """The tree with sections merged: `nodes={"count": 3}` changes one key, `serving__parallel={...}` one deeper."""
    tree = copy.deepcopy(TREE)
    for dotted, value in changes.items():
        *above, last = dotted.split("__")
        section = tree
        for name in above:
            section = section.setdefault(name, {})
        section[last] = section.get(last, {}) | value if isinstance(value, dict) else value
    return tree


@pytest.fixture
def make() -> MakeSpec:
    def build(**changes: object) -> ClusterSpec:
        return make_spec(changed_tree(**changes))

    return build


@pytest.fixture(scope="session")
def definitions() -> dict[str, Definition]:
    """Kind -> definition, of KubeRay's resources."""
    found = [read_definition(json.loads(file.read_text(encoding="utf-8"))) for file in sorted(CRDS.glob("ray*.json"))]
    return {definition.kind: definition for definition in found}

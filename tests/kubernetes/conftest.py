"""Collected by `make test-kube` only, which builds Kubernetes and says in this variable where."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.cluster import Cluster

PROGRAMS = os.environ.get("GANGWAY_KUBERNETES")
collect_ignore_glob = [] if PROGRAMS else ["test_*.py"]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    assert PROGRAMS is not None
    with Cluster(Path(PROGRAMS), tmp_path_factory.mktemp("kubernetes")) as made:
        yield made

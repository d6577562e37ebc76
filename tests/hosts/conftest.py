from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from tests.hosts.cluster import Cluster
from tests.hosts.net import Network, why_not

Networks = Callable[[int], Network]
Clusters = Callable[[int], Cluster]


@pytest.fixture(scope="module")
def network() -> Iterator[Networks]:
    """Makes a network of that many hosts, which lives until the tests of the file have run."""
    if reason := why_not():
        pytest.skip(reason)
    with ExitStack() as stack:
        yield lambda count: stack.enter_context(Network(count))


@pytest.fixture(scope="module")
def ray_hosts(network: Networks) -> Iterator[Clusters]:
    """Makes a network of that many hosts with a Ray node of one CPU on each."""
    with ExitStack() as stack:
        yield lambda count: stack.enter_context(closing(Cluster(network(count))))

from collections.abc import Iterator

import pytest
import ray

from serving.runtime.registry.client import NAMESPACE


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """A small Ray session for the tests of a file."""
    ray.init(
        address="local",
        num_cpus=1,
        namespace=NAMESPACE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()

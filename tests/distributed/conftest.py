"""Groups of one, two and three ranks, each started when a test first asks for it and shared by all of this folder.

Then they end: a rank that waits for work keeps threads that poll, and slows whatever runs beside it.
"""

from collections.abc import Iterator

import pytest

from tests.distributed.ranks import RankPool


def _pool(world: int) -> Iterator[RankPool]:
    pool = RankPool(world)
    yield pool
    pool.close()


@pytest.fixture(scope="package")
def ranks1() -> Iterator[RankPool]:
    """One rank."""
    yield from _pool(1)


@pytest.fixture(scope="package")
def ranks2() -> Iterator[RankPool]:
    """Two ranks on one machine."""
    yield from _pool(2)


@pytest.fixture(scope="package")
def ranks3() -> Iterator[RankPool]:
    """Three ranks on one machine."""
    yield from _pool(3)

"""The groups of rank processes that the other tests stand on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from serving.engine.distributed.collectives import Collectives
from tests.distributed.ranks import RankPool, RanksFailed


def place(collectives: Collectives) -> tuple[int, int]:
    return collectives.rank, collectives.world


def refuse(collectives: Collectives, culprit: int) -> None:
    if collectives.rank == culprit:
        raise ValueError("this rank will not")


def refuse_while_others_wait(collectives: Collectives) -> None:
    refuse(collectives, 0)
    dist.barrier()


def sums(collectives: Collectives) -> list[float]:
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.float64)
    return [
        collectives.all_reduce(torch.full((3,), collectives.rank + 1, dtype=dtype)).sum().item() for dtype in dtypes
    ]


def shares_memory(_: Collectives) -> bool:
    """Whether this process has mapped a segment of sums."""
    return "/dev/shm/gangway-" in Path("/proc/self/maps").read_text()


def segments(_: Collectives) -> list[str]:
    """Shared memory that still has a name."""
    return [file.name for pattern in ("deepspeed*", "gangway-*") for file in Path("/dev/shm").glob(pattern)]


def sum_of_a_transposed_tensor(collectives: Collectives) -> None:
    collectives.all_reduce(torch.ones(2, 3).t())


@pytest.fixture(scope="module")
def apart() -> Iterator[RankPool]:
    """Two ranks that do not know that they share a machine."""
    pool = RankPool(2, one_machine=False)
    yield pool
    pool.close()


def test_every_rank_knows_its_place(ranks3: RankPool) -> None:
    assert ranks3.run(place) == [(0, 3), (1, 3), (2, 3)]


def test_an_exception_comes_back_with_its_traceback_and_the_group_goes_on(ranks2: RankPool) -> None:
    with pytest.raises(RanksFailed, match=r"rank 1: Traceback[\s\S]*this rank will not") as caught:
        ranks2.run(refuse, 1)
    assert isinstance(caught.value.errors[1], ValueError)
    assert ranks2.run(place) == [(0, 2), (1, 2)]


def test_all_ranks_get_the_sum_in_every_number_format(ranks3: RankPool) -> None:
    assert ranks3.run(sums) == [[18.0] * 5] * 3


def test_ranks_on_different_machines_do_not_sum_through_shared_memory(apart: RankPool) -> None:
    assert apart.run(sums) == [[9.0] * 5] * 2
    assert apart.run(shares_memory) == [False] * 2


def test_ranks_on_one_machine_leave_no_shared_memory_behind(ranks2: RankPool) -> None:
    assert ranks2.run(segments) == [[], []]
    assert ranks2.run(shares_memory) == [True] * 2


def test_a_tensor_whose_sum_would_be_lost_is_refused(ranks2: RankPool) -> None:
    with pytest.raises(RanksFailed, match="needs a contiguous tensor"):
        ranks2.run(sum_of_a_transposed_tensor)


def test_one_rank_alone_has_nothing_to_add(ranks1: RankPool) -> None:
    assert ranks1.run(sums) == [[3.0] * 5]


def test_ranks_that_wait_for_a_failed_one_are_ended_with_their_stacks(apart: RankPool) -> None:
    with pytest.raises(RanksFailed, match=r"rank 0: Traceback[\s\S]*rank 1 did not answer[\s\S]*barrier"):
        apart.run(refuse_while_others_wait)

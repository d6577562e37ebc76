"""Sums through shared memory: right, the same bits everywhere, of any size, and noticed when nobody comes."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from serving.engine.distributed import library, shared_memory
from serving.engine.distributed.collectives import Collectives
from serving.engine.distributed.shared_memory import SLOT_BYTES, SLOTS, SharedSum
from serving.errors import OperatorError, PeerLost, ProtocolError
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.skipif(library.sums() is None, reason="there is no C++ compiler")

COUNTS = [1, 7, 576, 18_432, 600_000]
"""The last is more than a slot holds."""


def part(rank: int, count: int, dtype: torch.dtype, turn: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * turn + 10 * count + rank)
    return torch.randn(count, generator=generator).to(dtype)


def sums(collectives: Collectives, dtype_name: str) -> list[Any]:
    """On a rank: many sums of all sizes in a row, without a pause between them."""
    dtype = getattr(torch, dtype_name)
    shared = SharedSum(collectives.rank, collectives.world, 30.0)
    results = []
    for turn in range(30):
        for count in COUNTS:
            tensor = part(collectives.rank, count, dtype, turn)
            shared.all_reduce(tensor)
            results.append(tensor.float().numpy())
    return results


@pytest.mark.parametrize("dtype_name", ["float32", "bfloat16"])
def test_every_rank_has_the_sum_in_rank_order(ranks3: RankPool, dtype_name: str) -> None:
    dtype = getattr(torch, dtype_name)
    ranks = ranks3.run(sums, dtype_name)
    place = 0
    for turn in range(30):
        for count in COUNTS:
            truth = part(0, count, dtype, turn).float()
            for rank in (1, 2):
                truth = truth + part(rank, count, dtype, turn).float()
            for results in ranks:
                assert (results[place] == truth.to(dtype).float().numpy()).all()
            place += 1


def sums_in_turn(collectives: Collectives) -> list[Any]:
    """On a rank: a sum is begun before the one before it is ended; one rank after the other is late."""
    shared = SharedSum(collectives.rank, collectives.world, 30.0)
    parts = [part(collectives.rank, 20_000, torch.bfloat16, turn) for turn in range(200)]
    ranks = shared.ranks
    for turn, data in enumerate(parts):
        if turn % collectives.world == collectives.rank:
            time.sleep(0.001)
        shared.begin(ranks, 1, data.data_ptr(), data.numel())
        if turn:
            assert shared.end(ranks, 1, parts[turn - 1].data_ptr(), data.numel()) == 0
    assert shared.end(ranks, 1, parts[-1].data_ptr(), parts[-1].numel()) == 0
    return [data.float().numpy() for data in parts]


def test_two_sums_may_be_underway(ranks3: RankPool) -> None:
    ranks = ranks3.run(sums_in_turn)
    for turn in range(200):
        truth = sum(part(rank, 20_000, torch.bfloat16, turn).float() for rank in range(3))
        for results in ranks:
            assert (results[turn] == torch.as_tensor(truth).bfloat16().float().numpy()).all()


def wait_alone(collectives: Collectives) -> str:
    """On a rank: rank 1 never comes to the sum."""
    shared = SharedSum(collectives.rank, collectives.world, 0.2)
    if collectives.rank == 1:
        return ""
    try:
        shared.all_reduce(torch.ones(4))
    except PeerLost as error:
        return str(error)
    return "it came"


def test_a_rank_that_does_not_come_is_named(ranks2: RankPool) -> None:
    assert ranks2.run(wait_alone)[0] == "rank 1 did not come to a sum within 0.2 s"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory that has room for a part of the segment, as Docker's /dev/shm may have."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def make_and_sum(collectives: Collectives, folder: Path) -> str:
    """On a rank: sum in shared memory of this folder, as much as a slot holds, in every slot."""
    try:
        shared = SharedSum(collectives.rank, collectives.world, 30.0, folder)
    except OperatorError as error:
        return str(error)
    for _ in range(SLOTS):
        shared.all_reduce(torch.ones(SLOT_BYTES // 4))
    return "summed"


def test_shared_memory_that_is_too_small_is_told_by_every_rank_before_it_is_used(ranks2: RankPool, small: Path) -> None:
    for said in ranks2.run(make_and_sum, small):
        assert said.startswith(f"{small} (1.0 MiB free): the sums over the ranks of this machine need 8.0 MiB")
        assert "No space left on device" in said
        assert "--shm-size" in said
        assert "resources.shm" in said
    assert not list(small.iterdir())


def test_shared_memory_that_is_not_there_is_told(ranks2: RankPool, tmp_path: Path) -> None:
    for said in ranks2.run(make_and_sum, tmp_path / "none"):
        assert said.startswith(f"{tmp_path / 'none'}: the sums")
        assert "No such file or directory" in said


def test_the_segment_has_no_name_once_it_is_mapped(ranks2: RankPool, tmp_path: Path) -> None:
    assert ranks2.run(make_and_sum, tmp_path) == ["summed", "summed"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [b"", b"gangway-", b"gangway-a/../b", b"../gangway-a", b"\xff\xfe", b"passwd"])
def test_a_name_that_rank_0_would_not_give_is_refused(name: bytes) -> None:
    with pytest.raises(ProtocolError, match="names its shared memory"):
        shared_memory._file_name(name)

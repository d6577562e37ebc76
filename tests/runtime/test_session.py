import os
import tempfile
from pathlib import Path

import pytest

from serving.config import ParallelConfig
from serving.own_folder import own_folder
from serving.runtime.ray_cluster.capacity import missing_room
from serving.runtime.ray_cluster.session import ROOM, ray_folder

Nodes = list[dict[str, float]]


@pytest.mark.parametrize(
    ("nodes", "parallel"),
    [
        ([{"CPU": 2.0}], ParallelConfig(tensor_parallel_size=2)),
        ([{"CPU": 1.0}, {"CPU": 1.0}], ParallelConfig(tensor_parallel_size=2, placement="STRICT_SPREAD")),
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0}], ParallelConfig(tensor_parallel_size=4, gpus_per_rank=1)),
    ],
)
def test_a_group_that_fits_lacks_nothing(nodes: Nodes, parallel: ParallelConfig) -> None:
    assert missing_room(nodes, parallel) is None


@pytest.mark.parametrize(
    ("nodes", "parallel", "facts"),
    [
        ([{"CPU": 2.0}], ParallelConfig(tensor_parallel_size=3), ["2 of 3 ranks", "1 CPU", "1 node: 2 CPU"]),
        ([{"CPU": 3.0}], ParallelConfig(tensor_parallel_size=2, cpus_per_rank=2), ["1 of 2 ranks", "2 CPU"]),
        ([{"CPU": 9.0}], ParallelConfig(tensor_parallel_size=2, placement="STRICT_SPREAD"), ["a node of its own"]),
        ([{"CPU": 9.0}], ParallelConfig(tensor_parallel_size=2, gpus_per_rank=1), ["0 of 2 ranks", "1 GPU", "0 GPU"]),
        ([], ParallelConfig(tensor_parallel_size=2), ["0 of 2 ranks", "0 nodes"]),
    ],
)
def test_what_is_missing_is_said_with_its_numbers(nodes: Nodes, parallel: ParallelConfig, facts: list[str]) -> None:
    sentence = missing_room(nodes, parallel)
    assert sentence is not None
    for fact in facts:
        assert fact in sentence


def test_rays_sockets_and_logs_lie_where_nobody_else_can_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    assert ray_folder() == str(own_folder() / "ray")
    monkeypatch.setenv("RAY_TMPDIR", "/a/folder/of/the/users")
    assert ray_folder() is None


def test_a_temporary_folder_whose_name_is_too_long_for_a_socket_is_not_rays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = tmp_path / ("x" * ROOM)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert ray_folder() == f"/tmp/gangway-{os.getuid()}/ray"

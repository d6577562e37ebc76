import pytest

from serving.config import ParallelConfig
from serving.runtime.session import missing_room

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

"""Whether a group fits a Ray cluster."""

from collections.abc import Mapping, Sequence

import ray

from serving.config import Config, ParallelConfig
from serving.errors import OperatorError


def require_room(config: Config) -> None:
    """Raise `OperatorError`, naming what is missing, when this cluster could never hold the group."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if (missing := missing_room(nodes, config.parallel)) is not None:
        raise OperatorError(missing)


def need_of_a_rank(parallel: ParallelConfig) -> dict[str, int]:
    """Resource name -> amount."""
    amounts = {"CPU": parallel.cpus_per_rank, "GPU": parallel.gpus_per_rank}
    return {name: amount for name, amount in amounts.items() if amount}


def ranks_that_fit(node: Mapping[str, float], need: Mapping[str, int]) -> int:
    """How many ranks an empty node could hold."""
    return min(int(node.get(name, 0) // amount) for name, amount in need.items())


def missing_room(nodes: Sequence[Mapping[str, float]], parallel: ParallelConfig) -> str | None:
    """What these nodes (each: resource name -> amount in all) lack to hold every rank; None when they suffice."""
    need = need_of_a_rank(parallel)
    fits = [ranks_that_fit(node, need) for node in nodes]
    strict = parallel.placement == "STRICT_SPREAD"
    ranks = sum(min(fit, 1) if strict else fit for fit in fits)
    if ranks >= parallel.tensor_parallel_size:
        return None
    each = ", ".join(f"{amount} {name}" for name, amount in need.items())
    where = "on a node of its own " if strict else ""
    have = "; ".join(", ".join(f"{node.get(name, 0):g} {name}" for name in need) for node in nodes)
    return (
        f"the cluster has room for {ranks} of {parallel.tensor_parallel_size} ranks, each {where}with {each}; "
        f"its {len(nodes)} node{'s' if len(nodes) != 1 else ''}: {have}"
    )

"""Keeps nodes that could take over a rank ready to do so at once: each has a nursery before it has a rank.

Rank 0 owns what holds them, so they go with it, and the next rank 0 takes them up again.
"""

import logging
import os
from collections.abc import Set
from typing import Any

import ray

from serving.config import ParallelConfig
from serving.runtime.forkserver.server import hold
from serving.runtime.ray_cluster.capacity import need_of_a_rank, ranks_that_fit

logger = logging.getLogger(__name__)


class Holder:
    """An actor on a spare node, which keeps that node's nursery for as long as it lives."""

    def __init__(self) -> None:
        self._nursery = hold(os.getppid())


class Spares:
    """The spare nodes of one generation."""

    def __init__(self, parallel: ParallelConfig, used: Set[str]) -> None:
        """`used`: ids of the nodes that hold ranks."""
        self._need = need_of_a_rank(parallel)
        self._used = used
        self._holders: dict[str, Any] = {}

    def refresh(self) -> None:
        """Take up nodes that have come, forget those that have gone."""
        nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        spare = {id_ for id_, resources in nodes.items() if ranks_that_fit(resources, self._need)} - self._used
        self._holders = {id_: holder for id_, holder in self._holders.items() if id_ in spare}
        for id_ in spare - self._holders.keys():
            logger.info("node %s is kept ready", id_)
            options: dict[str, Any] = {"num_cpus": 0, "label_selector": {"ray.io/node-id": id_}}
            self._holders[id_] = ray.remote(Holder).options(**options).remote()

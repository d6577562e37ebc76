"""The Ray session of a command: an embedded local cluster, or the one that is there."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import ray

from serving.config import Config, ParallelConfig
from serving.errors import OperatorError
from serving.own_folder import own_folder, parent_for_sockets
from serving.runtime.ray_cluster import daemons, reaper
from serving.runtime.ray_cluster.environment import cluster_address
from serving.runtime.registry.client import NAMESPACE

ROOM = 20
"""Bytes that the temporary folder may take of the 107 in the path of a socket. Ours and Ray's folders take up to 87."""


@contextmanager
def ray_session(address: str | None, config: Config, *, verbose: bool, folder: Path | None = None) -> Iterator[bool]:
    """Connect to the cluster at `address` or in RAY_ADDRESS; start one for this configuration when neither is given.

    Yields whether the cluster is an embedded one, which ends with the context, or with this process if that is killed;
    `folder`, of temporary files, is then removed. Raises `OperatorError` when there is no cluster at the address.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    address = cluster_address(address)
    common: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": verbose, "logging_level": "WARNING"}
    try:
        if address is not None:
            ray.init(address=address, **common)
        else:
            common |= {"num_cpus": _embedded_cpus(config.parallel), "_temp_dir": ray_folder()}
            with daemons.apart():
                ray.init(address="local", include_dashboard=False, **common)
            daemons.end_idle(_node(), verbose=verbose)
    except (OSError, ValueError, RuntimeError) as error:
        raise OperatorError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    with nullcontext() if address is not None else _embedded(folder) as watch:
        try:
            yield address is None
        finally:
            if watch is not None:
                watch.release()
            ray.shutdown()


def _node() -> Any:
    """Ray's own object for what it has started here."""
    return ray._private.worker._global_node


def ray_folder() -> str | None:
    """Where an embedded cluster has its sockets and logs: where nobody else can enter, as Ray opens its own to all.

    None, Ray's own choice, when the user has made one. Raises `PermissionError`, or what making it raises.
    """
    if "RAY_TMPDIR" in os.environ:
        return None
    return str(own_folder(parent_for_sockets(ROOM)) / "ray")


@contextmanager
def _embedded(folder: Path | None) -> Iterator[daemons.Watch]:
    with _guarded(folder), daemons.Watch(daemons.needed(_node())) as watch:
        yield watch


@contextmanager
def _guarded(folder: Path | None) -> Iterator[None]:
    """See that nothing of the embedded cluster is left at the end, however this process ends (see `reaper`)."""
    session = _node().get_session_dir_path()
    places = [session, *map(str, [Path(ray.__file__).parents[1], *([folder] if folder else [])])]
    command = [sys.executable, "-I", "-S", reaper.__file__, *places]
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, cwd="/", start_new_session=True
    )
    try:
        yield
    finally:
        with suppress(subprocess.TimeoutExpired):  # it goes on without this process
            process.communicate(timeout=reaper.PATIENCE_S + reaper.KILL_S)


def _embedded_cpus(parallel: ParallelConfig) -> int:
    """All CPUs there are, or as many as the ranks ask for: on a small machine they share."""
    return max(os.cpu_count() or 1, parallel.tensor_parallel_size * parallel.cpus_per_rank + 1)

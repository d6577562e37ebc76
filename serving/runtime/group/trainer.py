"""The worker group as one Ray Train run: `TorchTrainer` restarts it, the registry says for how long."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import ray.train
from ray import PlacementGroupID
from ray.exceptions import RayActorError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup

from serving.config import Config
from serving.errors import GroupFailed
from serving.messages import Purpose
from serving.own_folder import own_folder
from serving.runtime.error_messages import cause_of_death, first_line
from serving.runtime.forkserver.server import through_nursery
from serving.runtime.group.backend import GroupTorchConfig
from serving.runtime.group.worker import run_rank
from serving.runtime.registry.client import RegistryClient, open_registry

TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
"""Train's defaults are sized for training runs of hours: here a lost rank is to be seen within a second, and there are
no trial folders or training metrics. What the user has set stays."""

UNLIMITED = -1

RUNS = "runs"
"""Where in this user's own folder Train keeps its runs, by Ray session and group: two clusters of one machine may have
groups of one name. The `ray.train.Result` of a batch job is read from there.
"""
KEPT_CHECKPOINTS = 2

logger = logging.getLogger(__name__)


class FailureWatch(ray.train.UserCallback):  # type: ignore[misc]
    """In the Train controller: tells the registry which ranks died, and ends the run when that was once too often."""

    def __init__(self, group: str) -> None:
        self._group = group

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Called between the failure and Train's restart; raising here ends the run for good."""
        registry = RegistryClient(self._group)
        snapshot = registry.changed()
        told = {info.rank for info in snapshot.ranks if info.gave_up}
        for rank, error in sorted(worker_exceptions.items()):
            failure = getattr(error, "health_check_failure", error)
            died = isinstance(failure, RayActorError) and rank not in told
            reason = f"rank {rank}'s process died: {cause_of_death(failure)}" if died else f"rank {rank} failed"
            registry.fail(snapshot.generation, reason, collateral=not died)
        snapshot = registry.changed()
        if snapshot.state in {"failed", "stopped"}:
            raise GroupFailed(snapshot.first_failure or "the group failed")


class Release(WorkerGroupCallback):  # type: ignore[misc]
    """In the Train controller: gives back what the last generation held, where Train has not.

    It forgets a group that broke while it was started, or whose controller was lost. The next group would wait for
    ever for what is held for nobody.
    """

    def __init__(self, group: str) -> None:
        self._group = group

    def before_worker_group_start(self, worker_group_context: Any) -> None:  # noqa: ARG002
        """Called before anything is asked of the cluster."""
        held = RegistryClient(self._group).changed().placement_group
        if held is not None:
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(held))))


class GroupTrainer(TorchTrainer):  # type: ignore[misc]
    """Train's, without two actors that a group has no use for: there are no datasets, and `Release` gives back what a
    lost controller held, where Train's own cleaner needs Ray's dashboard and, without it, stays for ever.

    Each of Ray's processes wakes a hundred times a second with nothing to do, which counts where two cores compute.
    """

    def _create_default_callbacks(self) -> list[Any]:
        needless = PlacementGroupCleanerCallback, DatasetsCallback
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, needless)]


def run_group(config: Config, purpose: Purpose) -> None:
    """Run the group until it is told to stop. Blocks; must be called inside a Ray session.

    Raises `GroupFailed` with the first failure's reason when it broke too often or cannot work at all.
    """
    registry = open_registry(config)
    # A rank that is stopped while it loads is noticed by nobody else: its peers wait for it, rightly and for long.
    settings = TRAIN_SETTINGS | {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(config.fault.step_timeout_s)}
    for variable, value in settings.items():
        os.environ.setdefault(variable, value)
    while not _run_once(config, registry, purpose):
        logger.warning("the Train run broke; the group is formed again by another")


def _run_once(config: Config, registry: RegistryClient, purpose: Purpose) -> bool:
    """One Train run to its end. False when it broke and may be tried again. Raises `GroupFailed`.

    Train sees to ranks that fail; it does not survive the loss of its controller, nor that of a rank in the moment
    between the making of the process group and the start of the train function. Nor does it start on what a controller
    was killed over in the midst of writing; nothing here goes on from that, so it is removed.
    """
    try:
        shutil.rmtree(_runs() / config.name, ignore_errors=True)
        make_trainer(config, purpose).fit()
    except Exception as error:
        lost = isinstance(error, RayActorError)
        reason = f"Train's controller died: {cause_of_death(error)}" if lost else first_line(error)
        if registry.fail(registry.changed().generation, reason, collateral=not lost, again=True):
            return False
        raise GroupFailed(registry.changed().first_failure or reason) from error
    return True


def _runs() -> Path:
    """Raises `OSError` when there can be none that is only this user's."""
    return own_folder() / RUNS / str(ray.get_runtime_context().get_session_name())


def make_trainer(config: Config, purpose: Purpose) -> GroupTrainer:
    """The Train run of this group. How often it may restart is the registry's decision, so Train's own limits are off.

    A start that fails is tried again as well: it may wait for a node that fits.
    """
    parallel = config.parallel
    resources = {"CPU": parallel.cpus_per_rank} | ({"GPU": parallel.gpus_per_rank} if parallel.gpus_per_rank else {})
    return GroupTrainer(
        run_rank,
        train_loop_config={"config": config.model_dump(mode="json"), "purpose": purpose},
        torch_config=GroupTorchConfig(group=config.name),
        scaling_config=ray.train.ScalingConfig(
            num_workers=parallel.tensor_parallel_size,
            use_gpu=bool(parallel.gpus_per_rank),
            resources_per_worker=resources,
            placement_strategy=parallel.placement,
        ),
        run_config=ray.train.RunConfig(
            name=config.name,
            storage_path=str(_runs()),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            failure_config=ray.train.FailureConfig(max_failures=UNLIMITED, controller_failure_limit=UNLIMITED),
            callbacks=[FailureWatch(config.name), Release(config.name)],
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            worker_runtime_env={} if parallel.gpus_per_rank else through_nursery(),
        ),
    )

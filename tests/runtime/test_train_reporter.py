"""Reports of how far a batch job is, by two real Train workers."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
import ray.train
from ray.train.torch import TorchTrainer

from serving.config import load_config
from serving.runtime.group.train_reporter import FILE, Reporter
from serving.runtime.registry.client import RegistryClient, open_registry
from tests.e2e.server import eventually

FIRST, LAST = {"rows": 1, "failed": 0}, {"rows": 9, "failed": 2}
PATIENCE_S = 30.0


def rank(settings: dict[str, Any]) -> None:
    """The job advances once it sees that its first progress has been reported."""
    context = ray.train.get_context()
    registry = RegistryClient(settings["group"])
    with Reporter(registry, context.get_world_rank(), interval_s=0.1):
        if context.get_world_rank() == 0:
            registry.advance(FIRST)
            run = Path(context.get_storage().experiment_fs_path)
            eventually(lambda: any(run.glob(f"checkpoint_*/{FILE}")), PATIENCE_S)
            registry.advance(LAST)
        else:
            eventually(lambda: registry.changed().progress == LAST, 2 * PATIENCE_S)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, about Ray's own
@pytest.mark.usefixtures("session")
def test_train_keeps_the_last_progress_as_metrics_and_checkpoint(tmp_path: Path) -> None:
    group = f"g{uuid.uuid4().hex[:8]}"
    registry = open_registry(load_config({"name": group, "model": {"path": str(Path.cwd())}}))
    trainer = TorchTrainer(
        rank,
        train_loop_config={"group": group},
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.25}),
        run_config=ray.train.RunConfig(name=group, storage_path=str(tmp_path)),
    )
    trainer.fit()
    registry.remove()
    result = ray.train.Result.from_path(str(tmp_path / group))
    assert result.metrics == LAST
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as folder:
        assert json.loads((Path(folder) / FILE).read_text()) == LAST
    reported = [metrics for _, metrics in result.best_checkpoints or []]
    assert FIRST in reported

"""What each rank runs: load, then lead (rank 0) or follow, telling the registry how it stands.

This is Train's train function, in a thread of an actor: signal handlers cannot be set here. Any failure is told to the
registry and raised again, so that Train forms the group again. The supervisor and the Train controller import this
module too, to hand the function on: what takes seconds to import is imported where it is used.
"""

import faulthandler
import logging
import os
import threading
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import ray.train
import ray.train.torch
import torch

from serving.config import Config, load_config
from serving.errors import ModelError, OperatorError, PeerLost
from serving.link import LinkServer
from serving.logs import set_up
from serving.messages import Purpose, RankInfo, Snapshot
from serving.runtime.error_messages import first_line
from serving.runtime.forkserver.server import retire
from serving.runtime.gateway_watch import ensure_gateway
from serving.runtime.group.backend import GENERATION, ONE_MACHINE
from serving.runtime.group.rank_status import Standing
from serving.runtime.group.standby import Spares
from serving.runtime.group.train_reporter import Reporter
from serving.runtime.registry.client import UNREACHABLE, RegistryClient

if TYPE_CHECKING:
    from serving.engine.engine import Engine

REFRESH_INTERVAL_S = 5.0
LAST_WORDS_S = 1.0
"""How long a rank that gives up tries to say why."""

logger = logging.getLogger(__name__)


def run_rank(settings: dict[str, Any]) -> None:
    """One rank of one generation, from loading to its end. `settings`: the whole `config`, and its `purpose`."""
    config = load_config(settings["config"])
    rank = Rank(config)
    set_up("rank", rank=rank.standing.info.rank, as_json=config.observe.log_json)
    rank.log("starts", device=rank.standing.info.device)
    try:
        rank.run(settings["purpose"])
    except Exception as error:
        rank.fail(error)
        raise
    retire()


class Rank:
    """This process's place in the group, and its line to the registry."""

    def __init__(self, config: Config) -> None:
        context = ray.train.get_context()
        self.config = config
        self.world = context.get_world_size()
        self.generation = int(os.environ[GENERATION])
        self.device = ray.train.torch.get_device() if config.parallel.gpus_per_rank else torch.device("cpu")
        self.registry = RegistryClient(config.name)
        info = RankInfo(
            rank=context.get_world_rank(),
            node_id=ray.get_runtime_context().get_node_id(),
            ip=ray.util.get_node_ip_address(),
            pid=os.getpid(),
            device=str(self.device),
        )
        self.standing = Standing(self.registry, self.generation, info)

    def run(self, purpose: Purpose) -> None:
        """Load, then compute until told to stop."""
        torch.set_num_threads(self.config.parallel.cpus_per_rank)
        with Reporter(self.registry, self.standing.info.rank) if purpose == "batch" else nullcontext():
            self._compute(deploys=purpose == "serve")

    def _compute(self, *, deploys: bool) -> None:
        if self.standing.info.rank == 0:
            Leader(self, deploys=deploys).run()
        else:
            over = threading.Event()
            threading.Thread(target=self._refresh, args=(over,), daemon=True).start()
            try:
                self.load().follow()
            finally:
                over.set()

    def load(self) -> "Engine":
        """This rank's engine; its progress goes to the registry."""
        from serving.engine.engine import load_engine

        engine = load_engine(
            self.config,
            self.standing.info.rank,
            self.world,
            os.environ[ONE_MACHINE] == "1",
            self.generation,
            self.device,
            self.standing.progress,
            self.give_up,
        )
        self.standing.progress(engine.shard_bytes, engine.shard_bytes)
        self.standing.tell(heads=engine.heads)
        seconds = self.standing.info.load_seconds
        self.log("has loaded", shard_mib=engine.shard_bytes >> 20, seconds=round(seconds, 1))
        return engine

    def fail(self, error: Exception) -> None:
        """Tell the registry why this generation breaks."""
        reason = f"rank {self.standing.info.rank} on {self.standing.info.ip}: {first_line(error)}"
        logger.exception("generation %d, %s", self.generation, reason)
        collateral = isinstance(error, PeerLost | RuntimeError)
        # What this machine lacked at a later start it has had before, and may have again.
        lacking = isinstance(error, OperatorError) and self.generation == 1
        final = lacking or isinstance(error, ModelError)
        try:
            self.registry.fail(self.generation, reason, final=final, collateral=collateral)
        except UNREACHABLE as unreachable:
            self.log("cannot reach the registry", error=first_line(unreachable))

    def give_up(self, reason: str, waiting: bool) -> None:
        """End this process now, whatever its threads are doing; the registry is told if it listens.

        `waiting`: this rank is well and waits for one that is not.
        """
        reason = f"rank {self.standing.info.rank} on {self.standing.info.ip}: {reason}"
        logger.error("generation %d, %s", self.generation, reason)
        telling = threading.Thread(target=self._tell_end, args=(reason, waiting), daemon=True)
        telling.start()
        telling.join(LAST_WORDS_S)
        faulthandler.dump_traceback()
        os._exit(1)

    def _tell_end(self, reason: str, waiting: bool) -> None:
        self.standing.tell(gave_up=reason)
        self.registry.fail(self.generation, reason, collateral=waiting)

    def log(self, event: str, **facts: object) -> None:
        """One line; the rank is in each."""
        details = "".join(f" {key}={value}" for key, value in facts.items())
        logger.info("generation %d %s%s", self.generation, event, details)

    def _refresh(self, over: threading.Event) -> None:
        while not over.wait(REFRESH_INTERVAL_S):
            self.standing.refresh_rss()


class Leader:
    """Rank 0: besides its share of the model, the link, the application in front, and the group's end."""

    def __init__(self, rank: Rank, *, deploys: bool) -> None:
        self._rank = rank
        self._deploys = deploys
        self._stop = threading.Event()
        self._loaded = threading.Event()
        self._ready = False
        """Loaded, and the application stands."""
        self._error: Exception | None = None

    def run(self) -> None:
        """Load while the application is being deployed, then lead until the registry says stop.

        The loop starts before the application stands, or followers would miss their heartbeats.
        """
        rank = self._rank
        self._link: LinkServer | None = None
        announcer = threading.Thread(target=self._announce, daemon=True)
        announcer.start()
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            engine = rank.load()
            self._link = LinkServer(rank.standing.info.ip, rank.generation)
            self._loaded.set()
            engine.lead(self._link, self._stop)
        finally:
            self._stop.set()
            self._loaded.set()
            if self._link is not None:
                self._link.close()
        if self._error is not None:
            raise self._error

    def _announce(self) -> None:
        """Deploy, wait for the model, and tell the registry that this generation computes."""
        try:
            if self._deploys:
                ensure_gateway(self._rank.config, self._stop)
            self._loaded.wait()
            if self._link is not None and not self._stop.is_set():
                self._ready = True
                with suppress(*UNREACHABLE):  # `_watch` tells it once it is back
                    self._tell_ready()
                self._rank.log("is ready")
                threading.Thread(target=self._keep_spares, daemon=True).start()
        except Exception as error:  # the thread's end is the group's: raised again by `run`
            self._error = error
            self._stop.set()

    def _tell_ready(self) -> None:
        assert self._link is not None
        self._rank.registry.ready(self._rank.generation, self._link.endpoint)

    def _keep_spares(self) -> None:
        """Until the end, on clusters with more nodes than the group uses. Ranks with GPUs have no nursery."""
        config = self._rank.config
        if not config.fault.warm_spares or config.parallel.gpus_per_rank:
            return
        spares = Spares(config.parallel, {info.node_id for info in self._rank.registry.changed().ranks})
        while not self._stop.is_set():
            try:
                spares.refresh()
            except Exception as error:  # no spare is no reason to stop serving
                logger.warning("spare nodes cannot be kept ready: %s", first_line(error))
            self._stop.wait(REFRESH_INTERVAL_S)

    def _watch(self) -> None:
        """Follow the registry's state; give a registry that has lost its memory what this rank knows."""
        known: Snapshot | None = None
        while not self._stop.is_set():
            try:
                known = self._follow(known)
            except UNREACHABLE:
                self._stop.wait(1.0)

    def _follow(self, known: Snapshot | None) -> Snapshot:
        """Wait for a change and act on it; returns what is known now."""
        registry = self._rank.registry
        snapshot = registry.changed(known.version if known else -1, REFRESH_INTERVAL_S)
        if known is not None and snapshot.generation < known.generation:
            registry.restore(known)
            return known
        if self._ready and (snapshot.state, snapshot.generation) == ("loading", self._rank.generation):
            self._tell_ready()  # it was told before, and has forgotten
        self._rank.standing.refresh_rss()
        if snapshot.state in {"failed", "stopped"}:
            self._stop.set()
        return snapshot

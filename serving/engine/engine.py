"""One rank of the engine, put together: model, cache, sampler, runner, and the loop its rank runs."""

import contextlib
import faulthandler
import logging
import os
import threading
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from serving.config import Config
from serving.engine.attention.kv_cache import reserve
from serving.engine.attention.select import cpu_kernels_apply, make_attention
from serving.engine.distributed.broadcast import Broadcast, GroupBroadcast, Loopback
from serving.engine.distributed.collectives import Collectives, make_collectives
from serving.engine.distributed.heartbeat import Heartbeat
from serving.engine.execution.runner import Runner
from serving.engine.host_memory import populate, returned_at_once
from serving.engine.loading.autotp import init_deepspeed
from serving.engine.loading.cpu_layers import use_cpu_kernels
from serving.engine.loading.loader import load_model, unwatched
from serving.engine.loading.weights import Plan
from serving.engine.loop import follow, lead
from serving.engine.models.sharded_model import ShardedModel
from serving.engine.sampling.sampler import Sampler
from serving.engine.scheduling.scheduler import Scheduler
from serving.engine.sessions import GatewaySessions
from serving.engine.watchdog import Watchdog
from serving.errors import ModelError
from serving.link import LinkServer

logger = logging.getLogger(__name__)


def give_up(reason: str, waiting: bool) -> None:
    """End this process at once, with all its stacks: its main thread may be in a call that never returns."""
    logger.error("%s%s", reason, " (another rank is to blame)" if waiting else "")
    faulthandler.dump_traceback()
    os._exit(1)


class Engine:
    """A loaded rank. `lead` on rank 0 and `follow` on all others run until told to stop."""

    def __init__(
        self,
        config: Config,
        model: ShardedModel,
        collectives: Collectives,
        generation: int,
        on_loss: Callable[[str, bool], None],
    ) -> None:
        """Collective: all ranks agree on the number of KV blocks."""
        self._config = config
        self._model = model
        self._generation = generation
        self._num_blocks = _agreed_blocks(config, model, collectives)
        self._room = reserve(model.kv_shape, self._num_blocks * config.engine.block_size, model.device)
        self.attention = make_attention(
            config.engine,
            model.kv_shape,
            self._room,
            config.parallel.cpus_per_rank,
            softcap=getattr(model.base.config, "attn_logit_softcapping", None),
        )
        sampler = Sampler(collectives, model.vocab_start, model.vocab_end, model.eos_token_ids, model.device)
        self.runner = Runner(model, self.attention, sampler, config.engine.block_size)
        fault = config.fault
        alone = collectives.world == 1
        self._broadcast: Broadcast = Loopback() if alone else GroupBroadcast(fault.step_timeout_s)
        self._heartbeat = None if alone else Heartbeat(fault.peer_timeout_s, lambda reason: on_loss(reason, True))
        self._watchdog = Watchdog(
            fault.step_timeout_s, lambda: self.runner.busy_since, lambda: collectives.waiting, on_loss
        )

    @property
    def shard_bytes(self) -> int:
        """Bytes of weights on this rank."""
        return self._model.shard_bytes

    @property
    def heads(self) -> int:
        """Attention heads that this rank computes."""
        return self._model.heads

    def populate(self) -> None:
        """Take the memory of all keys and values now, not by page while requests wait."""
        if self._room.device.type == "cpu":
            populate(self._room)

    def lead(self, link: LinkServer, stop: threading.Event) -> None:
        """Rank 0: serve until `stop` is set, then release the followers. Raises `PeerLost`."""
        scheduler = Scheduler(
            self._config.engine,
            generation=self._generation,
            num_blocks=self._num_blocks,
            max_model_len=self._config.model.max_model_len,
            vocab_size=self._model.vocab_size,
            eos_token_ids=self._model.eos_token_ids,
        )
        timeout = self._config.fault.peer_timeout_s
        sessions = GatewaySessions(scheduler, link, self._generation, timeout, self.runner.seconds)
        with self._guarded():
            lead(scheduler, self._broadcast, self.runner, link, sessions, stop)

    def follow(self) -> None:
        """Any other rank: compute what rank 0 says until it says stop. Raises `PeerLost`."""
        with self._guarded():
            follow(self._broadcast, self.runner)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Peers that fall silent and steps that do not end are noticed in here, whatever this thread is doing."""
        with self._heartbeat or contextlib.nullcontext(), self._watchdog:
            yield


def load_engine(
    config: Config,
    rank: int,
    world: int,
    one_machine: bool,
    generation: int,
    device: torch.device,
    progress: Callable[[int, int], None],
    on_loss: Callable[[str, bool], None] = give_up,
) -> Engine:
    """Load this rank's shard and make it ready to run. Collective over the default process group.

    `progress(loaded, total)` counts bytes of this rank's shard. `on_loss(reason, waiting)` is called from another
    thread when a peer is gone or a step does not end, and must end the process; `waiting`: another rank is to blame.
    Raises `ModelError` when the model cannot be served.
    """
    if world > 1:
        init_deepspeed()
    collectives = make_collectives(rank, world, one_machine, config.fault.step_timeout_s)
    engine = build_engine(config, collectives, generation, device, progress, on_loss)
    engine.populate()
    return engine


def build_engine(
    config: Config,
    collectives: Collectives,
    generation: int,
    device: torch.device,
    progress: Callable[[int, int], None] = unwatched,
    on_loss: Callable[[str, bool], None] = give_up,
) -> Engine:
    """As `load_engine`, on collectives that stand."""

    def prepare(model: ShardedModel, plan: Plan) -> None:
        if cpu_kernels_apply(config.engine, model.kv_shape, device):
            use_cpu_kernels(model, plan, config.parallel.cpus_per_rank)

    with returned_at_once():
        model = load_model(
            config.model, collectives, device, progress, prepare, balance_mlp=config.parallel.balance_mlp
        )
        return Engine(config, model, collectives, generation, on_loss)


def _agreed_blocks(config: Config, model: ShardedModel, collectives: Collectives) -> int:
    """The blocks that every rank has room for: ranks may hold different numbers of KV heads."""
    blocks = model.kv_shape.blocks_in(config.engine.kv_cache_gib, config.engine.block_size)
    if collectives.world > 1:
        least = torch.tensor([blocks], device=model.device)
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        blocks = int(least)
    needed = -(-config.model.max_model_len // config.engine.block_size)
    if blocks < needed:
        raise ModelError(
            f"engine.kv_cache_gib {config.engine.kv_cache_gib} holds {blocks * config.engine.block_size} tokens, "
            f"fewer than model.max_model_len {config.model.max_model_len}: raise the one or lower the other"
        )
    return blocks

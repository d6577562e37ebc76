"""What notices that a rank is gone or hangs: on real ranks that die, stop and sleep."""

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from serving.config import load_config
from serving.engine.distributed.collectives import Collectives, make_collectives
from serving.engine.distributed.heartbeat import Heartbeat
from serving.engine.engine import build_engine
from serving.engine.layers.cpu_decoder import FusedLayers
from serving.engine.watchdog import Watchdog
from serving.errors import PeerLost
from serving.messages import Chunk, NewSequence, Sampling, StepPlan
from tests.distributed.ranks import RankPool, RanksFailed
from tests.engine.tiny_models import save_model
from tests.support.requires import needs_avx512

PATIENCE_S = 60.0
"""Safety only."""

FIRST_STEP = StepPlan(
    generation=1,
    number=1,
    new=[NewSequence(handle=0, tokens=[5, 6, 7], prompt_len=3, sampling=Sampling(seed=0, max_tokens=4))],
    placed={0: [0]},
    prefill=[Chunk(0, 0, 3)],
)


@pytest.fixture
def pair() -> Iterator[RankPool]:
    """Two ranks of this test alone: it ends one of them."""
    pool = RankPool(2)
    yield pool
    pool.close()


def beat_together(_: Collectives) -> list[str]:
    """On a rank: what it noticed while all was well."""
    losses: list[str] = []
    with Heartbeat(5.0, losses.append):
        dist.barrier()
    return losses


def test_a_block_ends_on_all_ranks_together_and_nobody_is_missed(ranks3: RankPool) -> None:
    assert ranks3.run(beat_together) == [[], [], []]


def outlive(collectives: Collectives, number: int, timeout_s: float) -> Any:
    """On a rank: rank 1 sends itself a signal; what the other notices of it."""
    lost = threading.Event()
    reasons: list[str] = []

    def on_loss(reason: str) -> None:
        reasons.append(reason)
        lost.set()

    heartbeat = Heartbeat(timeout_s, on_loss)
    heartbeat.__enter__()
    if collectives.rank == 1:
        os.kill(os.getpid(), number)
    return lost.wait(PATIENCE_S) and reasons


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_is_stopped_is_noticed_by_its_peer(pair: RankPool, number: int) -> None:
    with pytest.raises(RanksFailed) as failed:
        pair.run(outlive, number, 1.0, timeout_s=10.0)
    assert set(failed.value.errors) <= {1}, failed.value
    assert "rank 0" not in str(failed.value)


def sleep_in_a_step(collectives: Collectives) -> tuple[str, bool]:
    """On a rank: a step that does not end, and what the watchdog says of it."""
    began = time.monotonic()
    said: list[tuple[str, bool]] = []
    woken = threading.Event()

    def on_hang(reason: str, waiting: bool) -> None:
        said.append((reason, waiting))
        woken.set()

    with Watchdog(0.5, lambda: began, lambda: collectives.waiting, on_hang):
        if collectives.rank == 1:
            collectives_py_wait(woken)
        else:
            hang(woken)
    return said[0]


def hang(woken: threading.Event) -> None:
    woken.wait(PATIENCE_S)


def collectives_py_wait(woken: threading.Event) -> None:
    """As if in the sum of a tensor, where a rank that is well waits for one that is not."""
    code = compile("woken.wait(60)", "serving/engine/distributed/collectives.py", "exec")
    exec(code, {"woken": woken})


def test_a_step_that_does_not_end_is_told_from_one_that_waits_for_another_rank(ranks2: RankPool) -> None:
    (hung, hung_waits), (waited, waited_waits) = ranks2.run(sleep_in_a_step)
    assert not hung_waits
    assert "hangs for over 0.5 s" in hung
    assert waited_waits
    assert "waits for another rank" in waited


def hang_in_the_layers(collectives: Collectives, folder: Path, one_machine: bool) -> tuple[str, bool, str]:
    """On a rank: rank 1 hangs before the layers' first sum. What the watchdogs say, what ends rank 0's step."""
    tree = {"model": {"path": str(folder), "max_model_len": 64, "shard_cache": None}, "engine": {"kv_cache_gib": 0.01}}
    group = make_collectives(collectives.rank, collectives.world, one_machine, timeout_s=3.0)
    runner = build_engine(load_config(tree), group, generation=1, device=torch.device("cpu")).runner
    said: list[tuple[str, bool]] = []
    entered: list[float] = []
    woken = threading.Event()
    run = FusedLayers._run

    def on_hang(reason: str, waiting: bool) -> None:
        faulthandler.cancel_dump_traceback_later()  # else it ends the process, as nobody puts it off any more
        said.append((reason, waiting))
        woken.set()

    def run_or_hang(self: FusedLayers, hidden_states: torch.Tensor, **others: Any) -> torch.Tensor:
        entered.append(time.monotonic())
        if collectives.rank == 1:
            hang(woken)
            raise PeerLost("woken")
        return run(self, hidden_states, **others)

    def busy_since() -> float | None:
        return entered[0] if entered and (group.waiting or collectives.rank == 1) else None

    with pytest.MonkeyPatch.context() as patch, Watchdog(0.5, busy_since, lambda: group.waiting, on_hang):
        patch.setattr(FusedLayers, "_run", run_or_hang)
        try:
            runner.execute(FIRST_STEP)
        except PeerLost as lost:
            return *said[0], str(lost)
    return *said[0], "the step ended well"


@needs_avx512
@pytest.mark.parametrize("one_machine", [True, False])
def test_a_rank_whose_layers_wait_in_c_for_another_is_not_said_to_hang(
    ranks2: RankPool, tmp_path: Path, one_machine: bool
) -> None:
    save_model("llama, tied", tmp_path)
    (waited, waited_waits, error), (hung, hung_waits, _) = ranks2.run(hang_in_the_layers, tmp_path, one_machine)
    assert waited_waits
    assert "waits for another rank for over 0.5 s, in _run" in waited
    assert error == "rank 1 did not come to a sum within 3 s"
    assert not hung_waits
    assert "hangs for over 0.5 s" in hung


def hold_the_interpreter(collectives: Collectives) -> None:
    """On rank 1: a call that never gives the interpreter back, so that no Python thread can run."""
    if collectives.rank == 1:
        began = time.monotonic()
        with Watchdog(1.0, lambda: began, lambda: False, lambda reason, waiting: None):
            deadlock_with_the_interpreter_held()


def deadlock_with_the_interpreter_held() -> None:
    import ctypes

    ctypes.PyDLL(None).pause()  # PyDLL calls with the interpreter's lock held


def test_a_step_that_holds_the_interpreter_is_ended_all_the_same(pair: RankPool) -> None:
    with pytest.raises(RanksFailed) as failed:
        pair.run(hold_the_interpreter, timeout_s=PATIENCE_S)
    assert "rank 1: the process ended" in str(failed.value)

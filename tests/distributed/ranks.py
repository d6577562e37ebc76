"""Groups of rank processes for tests: spawned once for each size, kept alive, given one function at a time.

Each rank has a gloo group over loopback, DeepSpeed set up for one machine, and one thread. A rank that raises while its
peers wait for it in a collective takes the whole group down; the next `run` starts a new one.
"""

import faulthandler
import itertools
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 240.0
"""Safety only: imports take 5 s, and DeepSpeed compiles its shared-memory operator once in a machine's life."""

PEER_GRACE_S = 2.0
"""How long the others may go on after a rank has raised."""

_groups = itertools.count()


class RanksFailed(Exception):
    """Some ranks raised, died or hung; the text has every traceback or stack."""

    def __init__(self, text: str, errors: dict[int, BaseException]) -> None:
        super().__init__(text)
        self.errors = errors


class RankPool:
    """`world` processes that run a function together: `run(function, *args)` -> one result for each rank."""

    def __init__(self, world: int, *, one_machine: bool = True) -> None:
        """`one_machine=False`: the ranks sum over the network, as if they were on different hosts."""
        self.world = world
        self._one_machine = one_machine
        self._processes: list[Any] = []
        self._connections: list[Connection] = []
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def run(self, function: Callable[..., Any], *args: Any, timeout_s: float = 120.0) -> list[Any]:
        """Call the module-level `function(collectives, *args)` on every rank at once; raises `RanksFailed`."""
        if not self._processes:
            self._start()
        for connection in self._connections:
            connection.send((function, args))
        return self._collect(timeout_s)

    def close(self) -> None:
        """End the processes."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(timeout=10)
        self._kill()

    def _start(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="ranks-")
        # The port only names shared memory; the group itself meets over a file.
        endpoint = str(100_000 + os.getpid() * 100 + next(_groups))
        context = multiprocessing.get_context("spawn")
        for rank in range(self.world):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(theirs, rank, self.world, self._scratch.name, endpoint, self._one_machine),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)
        self._collect(START_TIMEOUT_S)

    def _collect(self, timeout_s: float) -> list[Any]:
        answers: dict[int, tuple[bool, Any, str]] = {}
        deadline = time.monotonic() + timeout_s
        while len(answers) < self.world and (left := deadline - time.monotonic()) > 0:
            waiting = [c for rank, c in enumerate(self._connections) if rank not in answers]
            for connection in wait(waiting, left):
                rank = self._connections.index(connection)  # type: ignore[arg-type]
                answers[rank] = self._receive(rank)
                if not answers[rank][0]:
                    deadline = min(deadline, time.monotonic() + PEER_GRACE_S)
        if len(answers) == self.world and all(good for good, _, _ in answers.values()):
            return [answers[rank][1] for rank in range(self.world)]
        raise self._failure(answers)

    def _receive(self, rank: int) -> tuple[bool, Any, str]:
        try:
            answer: tuple[bool, Any, str] = self._connections[rank].recv()
        except (EOFError, OSError) as error:
            return False, error, f"the process ended with exit code {self._processes[rank].exitcode}"
        return answer

    def _failure(self, answers: dict[int, tuple[bool, Any, str]]) -> RanksFailed:
        texts = [f"rank {rank}: {text}" for rank, (good, _, text) in sorted(answers.items()) if not good]
        hung = sorted(set(range(self.world)) - set(answers))
        texts += [f"rank {rank} did not answer; its stacks:\n{self._stacks(rank)}" for rank in hung]
        errors = {rank: error for rank, (good, error, _) in answers.items() if not good}
        dead = any(not process.is_alive() for process in self._processes)
        if hung or dead:
            self._kill()
        return RanksFailed("\n".join(texts), errors)

    def _stacks(self, rank: int) -> str:
        process = self._processes[rank]
        if not process.is_alive():
            return f"exit code {process.exitcode}"
        os.kill(process.pid, signal.SIGUSR1)
        process.join(timeout=1)
        assert self._scratch is not None
        return (Path(self._scratch.name) / f"stacks-{rank}").read_text()

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._connections = [], []
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None


def _serve(connection: Connection, rank: int, world: int, scratch: str, *rest: Any) -> None:
    """A rank's whole life: set up, answer, run what is sent until the connection closes."""
    with (Path(scratch) / f"stacks-{rank}").open("w") as stacks:
        faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
        collectives = _answer(connection, _set_up, rank, world, scratch, *rest)
        while True:
            try:
                function, args = connection.recv()
            except EOFError:
                break
            _answer(connection, function, collectives, *args)
    _tear_down()


def _answer(connection: Connection, function: Callable[..., Any], *args: Any) -> Any:
    try:
        result = function(*args)
        connection.send((True, None if function is _set_up else result, ""))
    except Exception as error:
        connection.send((False, _portable(error), traceback.format_exc()))
        return None
    return result


def _portable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(repr(error))
    return error


def _set_up(rank: int, world: int, scratch: str, endpoint: str, one_machine: bool) -> Any:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": endpoint,
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    import torch
    import torch.distributed as dist

    from serving.engine.distributed.collectives import make_collectives
    from serving.engine.loading.autotp import init_deepspeed

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{scratch}/store", rank=rank, world_size=world)
    if world > 1:
        init_deepspeed()
    return make_collectives(rank, world, one_machine)


def _tear_down() -> None:
    """Leave without the interpreter's own end, which takes seconds and can abort in a library's."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    os._exit(0)

"""The step loop. `lead` and `follow` stand side by side: the order of collectives can be checked by eye.

lead                        follow
----                        ------
broadcast.send(plan)        broadcast.receive()
runner.execute(plan)        runner.execute(plan)      collective when the plan computes
"""

import threading
import time

from serving.engine.distributed.broadcast import LONGEST_SILENCE_S, Broadcast
from serving.engine.execution.runner import Runner
from serving.engine.scheduling.scheduler import Scheduler
from serving.engine.sessions import GatewaySessions
from serving.link import LinkServer


def lead(
    scheduler: Scheduler,
    broadcast: Broadcast,
    runner: Runner,
    link: LinkServer,
    sessions: GatewaySessions,
    stop: threading.Event,
) -> None:
    """Rank 0: decide, tell, compute, hand out, until `stop` is set. Raises `PeerLost`."""
    while not stop.is_set():
        sessions.receive(link.receive(0.0 if scheduler.has_work else LONGEST_SILENCE_S))
        began = time.perf_counter()
        plan = scheduler.schedule() or scheduler.idle()
        planned = time.perf_counter()
        sent = broadcast.send(plan)
        told = time.perf_counter()
        sampled = runner.execute(plan)
        if plan.computes:
            ready = time.perf_counter()
            sessions.send(scheduler.complete(plan, sampled.tokens, sampled.logprobs, sampled.embeddings))
            sessions.record(sent, plan=planned - began, broadcast=told - planned, emit=time.perf_counter() - ready)
        sessions.keep_alive()
    broadcast.send(scheduler.stop_plan())


def follow(broadcast: Broadcast, runner: Runner) -> None:
    """Any other rank: the same, told by rank 0, until it says stop. Raises `PeerLost`."""
    while not (plan := broadcast.receive()).stop:
        runner.execute(plan)

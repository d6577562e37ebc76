"""Clears up behind a command that was killed, on a cluster that outlives it.

The group itself ends with the command that owns it. The Serve application, Serve if the command brought it, and the
registry are detached, and outlive it on purpose: a group that is handed over to another command goes on with them. The
caretaker is detached as well; it removes them, and itself, once the group has had no supervisor for a while.
"""

import logging
import threading
from contextlib import suppress

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from serving.runtime.absence import Absence
from serving.runtime.registry.client import NAMESPACE, RegistryClient, actor_exists

LOOK_S = 2.0
PATIENCE_S = 20.0
"""How long a group may be without its supervisor; handing it over takes a few seconds."""

logger = logging.getLogger(__name__)


def caretaker_name(group: str) -> str:
    """The caretaker's name in Ray."""
    return f"{group}-caretaker"


class Caretaker:
    """The actor. It watches from its construction on, also after Ray has started it again."""

    def __init__(self, group: str, watched: str, brought_serve: bool, patience_s: float) -> None:
        """`watched`: the name of the actor that the group ends with."""
        self._group = group
        self._watched = watched
        self._brought_serve = brought_serve
        self._absence = Absence(patience_s)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        pause = threading.Event()
        while not self._has_cleared():
            pause.wait(LOOK_S)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

    def _has_cleared(self) -> bool:
        """Look, and clear up if it is time to. What fails is tried again at the next look."""
        try:
            if not self._absence.outlasts(actor_exists(self._watched)):
                return False
            logger.warning("the command of group %s is gone: removing what it has left", self._group)
            leave_cluster(self._group, brought_serve=self._brought_serve)
        except (RayError, TimeoutError):
            logger.exception("cannot clear up behind group %s now", self._group)
            return False
        return True


def post_caretaker(group: str, watched: str, *, brought_serve: bool, patience_s: float = PATIENCE_S) -> None:
    """Have the group looked after from now on; one that does so already stays."""
    actor = ray.remote(Caretaker).options(
        name=caretaker_name(group),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
    )
    actor.remote(group, watched, brought_serve, patience_s)


def dismiss_caretaker(group: str) -> None:
    """End the group's caretaker, if there is one."""
    with suppress(ValueError):
        ray.kill(ray.get_actor(caretaker_name(group), namespace=NAMESPACE), no_restart=True)


def leave_cluster(group: str, *, brought_serve: bool) -> None:
    """Remove the group's application, Serve if it came with the group and nobody else uses it now, and the registry.

    Requests that still wait for the group are told its end first, or the application would wait for them.
    """
    from ray import serve  # here, as a caretaker that only watches is to be small
    from ray.serve.exceptions import RayServeException

    registry = RegistryClient(group)
    with suppress(ValueError, RayActorError, GetTimeoutError):  # gone already
        registry.stop()
    with suppress(RayServeException, RayActorError):  # Serve was never started, or has died
        if group in serve.status().applications:
            serve.delete(group)
        if brought_serve and not serve.status().applications:
            serve.shutdown()
    registry.remove()

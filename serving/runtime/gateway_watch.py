"""Sees that there is a gateway: rank 0 as its generation begins, the supervisor from then on.

A gateway that Serve starts again by itself, as after a kill, is left to Serve. One that Serve will never have by itself
is deployed again, as is one that takes too long. That both may do so at a time does no harm: each names the deployment
that it is to follow, and Serve makes one of two that are equal.
"""

import logging
import threading
import time
from collections.abc import Callable

from ray.exceptions import RayError

from serving.config import Config
from serving.presence import Presence, ask_serve, presence
from serving.runtime.absence import Absence
from serving.runtime.error_messages import first_line
from serving.runtime.registry.client import UNREACHABLE, RegistryClient

LOOK_S = 2.0
"""Between two looks of the supervisor."""
ENSURE_S = 0.2
"""Between two of rank 0's, which is not ready before there is a gateway."""
START_PATIENCE_S = 120.0
"""How long Serve may be about a gateway, which takes some seconds, before that is taken to be stuck."""

logger = logging.getLogger(__name__)


class GatewayWatch:
    """The gateway of one group."""

    def __init__(
        self,
        config: Config,
        look: Callable[[], Presence] | None = None,
        deploy: Callable[[Presence], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`deploy`: another in the place of what is found, if anything; returns once it runs."""
        self._config = config
        self._look = look or self._ask_serve
        self._deploy = deploy or self._deploy_again
        self._clock = clock
        self._absence = Absence(START_PATIENCE_S, clock)

    def ensure(self) -> bool:
        """Look once, and deploy a gateway if Serve will not have one by itself; returns whether one lives.

        Raises what Serve raises when it cannot be asked, or the gateway does not start.
        """
        found = self._look()
        stuck = self._absence.outlasts(found.state == "alive")
        if found.state == "lost" or stuck:
            self._absence = Absence(START_PATIENCE_S, self._clock)
            self._deploy(found)
            return True
        return found.state == "alive"

    def run(self) -> None:
        """From the first time that the group is ready, when there has been a gateway, until it is to end."""
        registry, pause = RegistryClient(self._config.name), threading.Event()
        ready = False
        while True:
            try:
                state = registry.changed().state
                if state in {"draining", "failed", "stopped"}:
                    return
                ready = ready or state == "ready"
                if ready:
                    self.ensure()
            except (*UNREACHABLE, RayError, RuntimeError) as error:
                logger.warning("the gateway cannot be looked after now: %s", first_line(error))
            pause.wait(LOOK_S)

    def _ask_serve(self) -> Presence:
        details, living = ask_serve()
        return presence(details, self._config.name, living)

    def _deploy_again(self, found: Presence) -> None:
        from serving.runtime.deployment import deploy  # takes seconds to import, and is hardly ever needed

        if found.deployed_at is not None:
            logger.warning("the gateway is gone and does not come back by itself: it is deployed again")
        deploy(self._config, follows=found.deployed_at)


def ensure_gateway(config: Config, stopping: threading.Event) -> None:
    """Return once a gateway runs, or `stopping` is set. One that lives stays where it is: it holds its clients.

    Raises `RuntimeError` when it does not start.
    """
    watch = GatewayWatch(config)
    while not stopping.is_set():
        try:
            if watch.ensure():
                return
        except RayError as error:  # Serve's controller is between two lives, or slow
            logger.warning("Serve cannot be asked for the gateway now: %s", first_line(error))
        stopping.wait(ENSURE_S)

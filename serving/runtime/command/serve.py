"""What `gangway serve` does: check, start, wait until it answers, serve until told to stop, drain, take all down.

The command is a watcher: the work is done by actors that it owns, so that they end with it, however it ends. The rest
goes with an embedded cluster (see `ray_cluster.reaper`), or is left to the caretaker if this command is killed. Another
command may take the group over (see `handover`); this one then ends, and leaves to it all but its own actors.
"""

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, Protocol

import ray
from ray import serve
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.serve.context import _get_global_client

from serving.config import Config
from serving.errors import GroupFailed, OperatorError
from serving.messages import Snapshot
from serving.runtime.command.address import require_reach, url_that_is_ready
from serving.runtime.command.handover import require_successor, take_over
from serving.runtime.command.orphan_cleaner import dismiss_caretaker, leave_cluster, post_caretaker
from serving.runtime.command.preflight import require_free_port
from serving.runtime.deployment import application_status, start_serve
from serving.runtime.error_messages import cause_of_death, first_line
from serving.runtime.group.supervisor import find_supervisor, start_supervisor, supervisor_name
from serving.runtime.ray_cluster.capacity import require_room
from serving.runtime.registry.client import RegistryClient, open_registry

POLL_S = 0.5
DRAIN_POLL_S = 0.2
CALL_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 15.0
"""How long the ranks may take to end by themselves."""


class Display(Protocol):
    """Where the course of things is shown."""

    def show(self, snapshot: Snapshot) -> None:
        """Something has changed."""

    def say(self, line: str) -> None:
        """Show one line for good."""


class Launch:
    """One group, from this command's start to its end. Must be used inside a Ray session."""

    def __init__(
        self,
        config: Config,
        display: Display,
        stopping: threading.Event,
        hurry: threading.Event,
        *,
        embedded: bool,
        replace: bool = False,
    ) -> None:
        """`stopping` asks for an orderly end, `hurry` cuts it short. `embedded`: the cluster ends with this command.
        `replace`: take over the group of this name that another command runs.
        """
        self._config = config
        self._embedded = embedded
        self._replace = replace
        self._owner = uuid.uuid4().hex
        self._display = display
        self._stopping = stopping
        self._hurry = hurry
        self._registry = RegistryClient(config.name)
        self._snapshot: Snapshot | None = None
        self._supervisor: Any = None
        self._outcome: Any = None
        self._succeeds = False
        """A group runs, and is taken over."""
        self._url: str | None = None
        """Where it has answered."""
        self._serve_was_here = False
        self._brought_serve = False
        """Serve is there for this group: it came with this command or one before it."""
        self._side_work: list[Future[None]] = []

    def run(self) -> None:
        """Serve until `stopping` is set. Raises `OperatorError` when it cannot begin, `GroupFailed` when it ended."""
        self._check()
        began = time.monotonic()
        if self._succeeds:
            self._take_over()
        try:
            self._start()
            if self._watch_until(self._answers):
                self._display.say(self._ready_line(time.monotonic() - began))
                self._watch_until(lambda: False)
            self._drain()
        finally:
            self._take_down()

    def _check(self) -> None:
        name = self._config.name
        require_room(self._config)
        require_reach(self._config.http)
        if (running := find_supervisor(name)) is not None:
            if not self._replace:
                raise OperatorError(
                    f"a group named {name} already runs on this cluster; give this one another name, or --replace it"
                )
            require_successor(running, self._config)
            self._succeeds = True
        self._serve_was_here = self._require_address()

    def _require_address(self) -> bool:
        """See that Serve listens, or can listen, where the configuration says; returns whether it runs already."""
        http = self._config.http
        client = _get_global_client(raise_if_no_controller_running=False)
        if client is None:
            require_free_port(http.host, http.port)
            return False
        if (client.http_config.host, client.http_config.port) != (http.host, http.port):
            raise OperatorError(
                f"Ray Serve already runs on this cluster at {client.http_config.host}:{client.http_config.port}; "
                f"set http.host and http.port to that"
            )
        return True

    def _take_over(self) -> None:
        left = take_over(self._config.name, self._owner, self._stopping)
        self._brought_serve = left.brought_serve

    def _start(self) -> None:
        """While the group's processes start, Serve is started for what rank 0 will deploy, and the model looked at."""
        name = self._config.name
        if not self._succeeds:
            self._clear_place()
            open_registry(self._config).own(self._owner, brought_serve=self._brought_serve)
        if not self._embedded:
            post_caretaker(name, supervisor_name(name), brought_serve=self._brought_serve)
        try:
            self._supervisor = start_supervisor(self._config)
        except ValueError as error:
            raise OperatorError(f"another command has just started a group named {name}") from error
        self._outcome = self._supervisor.outcome.remote()
        self._side_work = [_aside(work) for work in (self._start_serve, self._check_model)]

    def _clear_place(self) -> None:
        """Remove what a killed command has left of this name. The Serve that it brought is ours from now on."""
        name = self._config.name
        dismiss_caretaker(name)
        with suppress(ValueError, RayActorError, GetTimeoutError):  # as a rule there is none
            self._brought_serve = self._registry.changed().brought_serve
        self._brought_serve |= not self._serve_was_here
        self._registry.remove()
        if self._serve_was_here and application_status(name) is not None:
            serve.delete(name)

    def _watch_until(self, arrived: Callable[[], bool]) -> bool:
        """Show what happens until `arrived` (True), or `stopping` is set or the group is another command's (False).

        Raises `GroupFailed`.
        """
        while not self._stopping.is_set():
            self._look(POLL_S)
            if self._replaced():
                return False
            self._raise_if_over()
            if arrived():
                return True
        return False

    def _look(self, patience_s: float) -> None:
        """Wait a moment for a change, and show it."""
        with suppress(RayActorError, GetTimeoutError, ValueError):  # Ray is starting the registry again
            snapshot = self._registry.changed(self._snapshot.version if self._snapshot else -1, patience_s)
            if snapshot != self._snapshot:
                self._snapshot = snapshot
                self._display.show(snapshot)

    def _replaced(self) -> bool:
        """Whether another command has taken the group over, as far as was seen. A registry may have no memory."""
        return self._snapshot is not None and self._snapshot.owner not in {None, self._owner}

    def _start_serve(self) -> None:
        if self._serve_was_here:
            return
        try:
            start_serve(self._config)
        except RayError as error:
            raise OperatorError(f"Ray Serve could not start: {first_line(error)}") from error

    def _check_model(self) -> None:
        """Find what the files show to be wrong sooner than the ranks would; only where the model is on this machine."""
        if self._config.model.path.exists():
            from serving.engine.loading.model_check import check_model

            check_model(self._config.model, self._config.parallel.tensor_parallel_size)

    def _raise_if_over(self) -> None:
        for work in self._side_work:
            if work.done():
                work.result()
        ended, _ = ray.wait([self._outcome], timeout=0)
        if not ended:
            return
        try:
            reason = ray.get(self._outcome)
        except RayActorError as error:
            raise GroupFailed(f"the supervisor of the group died: {cause_of_death(error)}") from error
        raise GroupFailed(reason or "the group has ended without being told to")

    def _answers(self) -> bool:
        """Whether /readyz says yes over real HTTP."""
        if self._snapshot is None or self._snapshot.state != "ready":
            return False
        self._url = url_that_is_ready(self._config.http)
        return self._url is not None

    def _ready_line(self, seconds: float) -> str:
        ranks = self._config.parallel.tensor_parallel_size
        count = f"{ranks} rank{'s' if ranks != 1 else ''}"
        return f"ready at {self._url}  {self._config.model.name} on {count}, after {seconds:.1f} s"

    def _drain(self) -> None:
        """Refuse new requests and let the running ones finish, up to `fault.drain_timeout_s`."""
        self._look(0.0)
        if self._replaced() or not self._serving():
            return
        self._registry.drain()
        gateway = serve.get_app_handle(self._config.name)
        deadline = time.monotonic() + self._config.fault.drain_timeout_s
        told = 0
        with suppress(RayActorError, TimeoutError):  # the gateway is gone, and all requests with it
            while (running := gateway.in_flight.remote().result(timeout_s=CALL_TIMEOUT_S)) > 0:
                if running != told:
                    self._display.say(f"draining: {running} request{'s' if running != 1 else ''} running")
                told = running
                if self._hurry.wait(DRAIN_POLL_S) or time.monotonic() > deadline:
                    return

    def _serving(self) -> bool:
        """Whether there is a group with something to finish."""
        return self._snapshot is not None and self._snapshot.state in {"ready", "draining"}

    def _take_down(self) -> None:
        """End the group, the application and the registry, also when this command has failed.

        An embedded cluster takes its actors along as it ends; only a group that serves is ended in order before. Of a
        group that is another command's, only the processes are ended, at once: their successors wait for the place.
        """
        self._look(0.0)
        if self._replaced():
            self._display.say("replaced by another command")
            self._kill_supervisor()
            return
        wait(self._side_work)
        if self._supervisor is not None and self._serving():
            with suppress(RayActorError, GetTimeoutError, ValueError):  # it has just ended by itself
                self._registry.stop()
            ray.wait([self._outcome], timeout=STOP_TIMEOUT_S)
        if not self._embedded:
            self._kill_supervisor()
            leave_cluster(self._config.name, brought_serve=self._brought_serve)
            dismiss_caretaker(self._config.name)

    def _kill_supervisor(self) -> None:
        if self._supervisor is not None:
            ray.kill(self._supervisor)


def _aside(work: Callable[[], None]) -> "Future[None]":
    """Do some work in a thread of its own; the future has its end, or its error."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except Exception as error:  # raised where the future is read
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    return done

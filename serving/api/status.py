"""How things are: for load balancers, operators and the console. Never shows a key.

The probes ask for no key, so they tell the state and the generation and nothing else. Why a group broke names paths
and addresses, and is in `/v1/status` only.
"""

import os

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from serving.api.answers import EngineCounters, GatewayPlace, Health, KvUse, Queue, Status, Suspect
from serving.api.responses import json_response
from serving.config import Config
from serving.gateway.defaults import Defaults
from serving.gateway.journal import Entry, State
from serving.gateway.service import Service


class StatusPages:
    """The endpoints."""

    def __init__(self, service: Service, config: Config, defaults: Defaults, ip: str) -> None:
        """`ip`: of the node that this runs on."""
        self._service = service
        self._gateway = GatewayPlace(ip=ip, pid=os.getpid())
        self._config = config
        lengths = {} if defaults.max_tokens is None else {"max_tokens": defaults.max_tokens}
        self._sampling_defaults = {**defaults.sampling, **lengths}
        self._end_tokens = sorted(defaults.ends)

    async def healthz(self, _request: Request) -> Response:
        """200 while this process serves, whatever the group does."""
        return json_response(self._health())

    async def readyz(self, _request: Request) -> Response:
        """200 while a generation computes; else 503, whose message is the state."""
        if not self._service.ready:
            raise self._service.unavailable()
        return json_response(self._health())

    def _health(self) -> Health:
        snapshot = self._service.uplink.snapshot
        return Health(state=self._service.state, generation=snapshot.generation if snapshot else 0)

    async def status(self, _request: Request) -> Response:
        """Everything that is known of the group."""
        return json_response(self.report())

    def report(self) -> Status:
        """The group, the queue and the engine, now."""
        service, snapshot = self._service, self._service.uplink.snapshot
        stats = service.uplink.stats
        return Status(
            name=self._config.name,
            model=self._config.model.name,
            state=service.state,
            group_state=snapshot.state if snapshot else None,
            ready=service.ready,
            generation=snapshot.generation if snapshot else 0,
            ranks=snapshot.ranks if snapshot else [],
            gateway=self._gateway,
            sampling_defaults=self._sampling_defaults,
            end_tokens=self._end_tokens,
            queue=self._queue(),
            kv=KvUse(blocks_used=stats.kv_blocks_used, blocks_total=stats.kv_blocks_total),
            engine=msgspec.convert(stats, EngineCounters, from_attributes=True),
            restarts=snapshot.restarts if snapshot else 0,
            first_failure=snapshot.first_failure if snapshot else None,
            last_failure=snapshot.last_failure if snapshot else None,
            suspects=[_suspect(entry) for entry in service.journal.entries if entry.suspect],
            culprits=list(service.suspects.culprits),
        )

    def _queue(self) -> Queue:
        return Queue(
            running=self._service.count(State.RUNNING),
            waiting=self._service.count(State.WAITING, State.SUBMITTED),
            waiting_tokens=self._service.journal.waiting_tokens,
            max_waiting=self._config.http.max_waiting,
        )


def _suspect(entry: Entry) -> Suspect:
    return Suspect(
        id=entry.id,
        prompt_tokens=len(entry.prompt),
        completion_tokens=len(entry.emitted),
        breaks=entry.breaks,
        breaks_alone=entry.breaks_alone,
        running=entry.state is not State.WAITING,
    )

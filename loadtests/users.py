"""The users of a load test, one class for each thing that people do. A class's tag chooses it: `--tags chat impatient`.

Importing this patches the process (gevent), as importing Locust always does: run it in a process of its own.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator

from gevent.pool import Group  # type: ignore[import-untyped]
from locust import User, events, tag, task

from loadtests.client import Client
from loadtests.prompts import WRITERS, Ask, Author

PAUSE_S = 1.0
"""Mean time from one answer to the next question."""
ARRIVALS_PER_SOURCE = 0.25
"""Requests a second from each `Arrivals`."""
USERS_PER_WORKER = 100_000
"""So many numbers each worker gives out before it would give another's."""

numbers: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def count_anew(**_: object) -> None:
    """A test that is started again from Locust's page sends the same prompts again."""
    numbers.clear()


class Person(User):
    """Asks, reads the answer, thinks, asks again. Subclasses say what is asked."""

    abstract = True

    def on_start(self) -> None:
        kind = type(self).__name__
        runner, options = self.environment.runner, self.environment.parsed_options
        assert runner is not None
        assert options is not None
        assert self.host, "name the server: --host http://…"
        worker: int = getattr(runner, "worker_index", 0)
        number = worker * USERS_PER_WORKER + next(numbers[kind])
        self.client = Client(self.host, self.environment.events.request.fire)
        self.author = Author(options.seed, kind, number, self.client.model())
        self.underway = Group()

    def on_stop(self) -> None:
        self.underway.join()
        self.client.close()

    def wait_time(self) -> float:
        """Seconds, from the seed as well."""
        return self.author.pauses.uniform(0.5, 1.5) * PAUSE_S

    def ask(self, *asks: Ask) -> None:
        """Send all at once, and read every answer."""
        for one in asks:
            self.underway.spawn(self.client.send, one)
        self.underway.join()


class Reader(Person):
    """`/predict`, whole answers."""

    weight = 2

    @tag("plain")
    @task
    def read(self) -> None:
        self.ask(*WRITERS["plain"](self.author))


class Watcher(Person):
    """`/predict`, streamed."""

    weight = 2

    @tag("stream")
    @task
    def watch(self) -> None:
        self.ask(*WRITERS["stream"](self.author))


class Talker(Person):
    """A chat whose history grows with every turn: all but the last question is in the prefix cache."""

    weight = 2

    @tag("chat")
    @task
    def talk(self) -> None:
        self.ask(*WRITERS["chat"](self.author))


class Scholar(Person):
    """Long documents, short answers."""

    @tag("documents")
    @task
    def study(self) -> None:
        self.ask(*WRITERS["documents"](self.author))


class Crowd(Person):
    """Several requests in the same moment, then a long silence."""

    @tag("bursts")
    @task
    def gather(self) -> None:
        self.ask(*WRITERS["bursts"](self.author))

    def wait_time(self) -> float:
        return 5 * super().wait_time()


class Impatient(Person):
    """Leaves in the middle of the stream. The server must stop computing for it."""

    @tag("impatient")
    @task
    def leave(self) -> None:
        self.ask(*WRITERS["impatient"](self.author))


class Mistaken(Person):
    """Sends what is wrong; the refusal is what is expected, anything else a failure."""

    @tag("wrong")
    @task
    def err(self) -> None:
        self.ask(*WRITERS["wrong"](self.author))


class Arrivals(Person):
    """An open loop: Poisson arrivals that wait for no answer. Their rate grows with the number of these users.

    Only there when asked for by tag: beside the others it would say nothing.
    """

    def on_start(self) -> None:
        super().on_start()
        self.next: list[Ask] = []

    @tag("open")
    @task
    def arrive(self) -> None:
        """Locust calls this before the first wait: nothing is sent then, or each new source would be a burst."""
        for one in self.next:
            self.underway.spawn(self.client.send, one)
        self.next = WRITERS["open"](self.author)

    def wait_time(self) -> float:
        return self.author.pauses.expovariate(ARRIVALS_PER_SOURCE)

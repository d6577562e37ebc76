"""Load on a running server: `python -m locust -f loadtests/locustfile.py --host http://127.0.0.1:8000`, or `make load`.

`--tags` chooses among plain, stream, chat, documents, bursts, impatient, wrong (all of these unless told) and open.
A shape is a second file: `-f loadtests/locustfile.py,loadtests/shapes/burst.py`. Run it with `python -m`, in the
project's folder, so that `loadtests` can be imported.

Several machines: the same command with `--master --expect-workers 2` on one, and with `--worker --master-host NAME`
on each other; `--tags` must be given to all of them, the other options come from the master. Each worker numbers its
users from a range of its own, so no two send the same prompts; which worker has which range depends on the order in
which they connect. On one machine `--processes 4` does the same.
"""

from typing import Any

import gevent  # type: ignore[import-untyped]
from locust import User, events, stats
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtests.users import Arrivals, Crowd, Impatient, Mistaken, Reader, Scholar, Talker, Watcher

USERS: tuple[type[User], ...] = Reader, Watcher, Talker, Scholar, Crowd, Impatient, Mistaken
"""Everyone who is there unless told."""


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: LocustArgumentParser) -> None:
    """Options of our own, which a master hands to its workers."""
    parser.add_argument("--seed", type=int, default=0, help="the same seed sends the same prompts")
    group = parser.add_argument_group("saturation", "for shapes/saturation.py")
    group.add_argument("--slo-ttft-ms", type=float, default=1000, help="the first token must have come after that time")
    group.add_argument("--slo-percent", type=float, default=95, help="for so many percent of the requests")
    group.add_argument("--step-rate", type=float, default=1.0, help="requests/s that each step adds")
    group.add_argument("--step-seconds", type=float, default=20, help="how long each step is watched")
    group.add_argument("--max-rate", type=float, default=100, help="requests/s at which it ends in any case")


@events.init.add_listener  # type: ignore[untyped-decorator]
def choose_users(environment: Environment, **_: Any) -> None:
    """Keep the classes whose tag was asked for: Locust would keep them all, and those without a task would fail."""
    tags = set(getattr(environment.parsed_options, "tags", None) or ())
    everyone: list[type[User]] = [*USERS, Arrivals]
    chosen = [user for user in everyone if tags & tags_of(user)] if tags else list(USERS)
    if not chosen:
        raise SystemExit(f"no user has one of the tags {', '.join(sorted(tags))}")
    environment.user_classes = chosen


@events.user_error.add_listener  # type: ignore[untyped-decorator]
def count_crash(user_instance: User, exception: Exception, **_: Any) -> None:
    """A user that could not go on is a failure in the statistics too, where a gate sees it."""
    row = {"request_type": "total", "name": "user", "response_time": None, "response_length": 0}
    user_instance.environment.events.request.fire(**row, exception=exception, context={})


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def let_write(**_: Any) -> None:
    """Locust rewrites its CSV every second, and not at the end: without this a gate would not see the last requests."""
    gevent.sleep(2 * stats.CSV_STATS_INTERVAL_SEC)


def tags_of(user: type[User]) -> set[str]:
    """The tags of a user's tasks."""
    return {tag for task in user.tasks for tag in getattr(task, "locust_tag_set", ())}

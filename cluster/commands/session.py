"""A lifecycle on an open connection, and what Ctrl-C means for it: what the commands that change something share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from cluster.commands.lifecycle import Lifecycle
from cluster.config.spec import ClusterSpec
from cluster.k8s.connection import connect
from cluster.status.observer import Wakeups
from cluster.status.snapshot import gang_of


@contextmanager
def opened(
    spec: ClusterSpec, kubeconfig: str | None, context: str | None, say: Callable[[str], None]
) -> Iterator[Lifecycle]:
    """A lifecycle whose waits end early when something changes."""
    client, gang = connect(kubeconfig, context), gang_of(spec)
    with Wakeups(client, gang) as wakeups:
        yield Lifecycle(client=client, gang=gang, say=say, wait=wakeups.wait)


def interruptible(work: Callable[[], object], config: str, again: str | None = "up") -> None:
    """Ctrl-C leaves all as it is, and says what that means. `config`: the gang as the command line names it.

    `again`: the command that waits for the same once more; None: there is none.
    """
    try:
        work()
    except KeyboardInterrupt:
        command = "gangway cluster"
        typer.echo(
            "interrupted: what was applied stays, and goes on without this command. "
            f"See `{command} status {config}`, {f'wait again with `{command} {again} {config}`, ' if again else ''}"
            f"remove it with `{command} down {config}`.",
            err=True,
        )
        raise

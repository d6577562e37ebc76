"""The command line. Parses, calls, and turns an error into one sentence and an exit code; nothing else.

Exit codes: 0 done, 1 the operator must act, 2 wrong usage or configuration. Heavy modules are imported by
the command that needs them, so that `gangway --help` answers at once.
"""

import sys
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer
from typer.exceptions import TyperException

from serving.addresses import shown_in
from serving.cli.batch import batch
from serving.cli.bench import bench
from serving.cli.demo_model import demo_model
from serving.cli.drill import drill
from serving.cli.serve import serve
from serving.cli.status import status
from serving.errors import ConfigError, GangwayError, OperatorError
from serving.logs import show_uncaught
from serving.runtime.command.signals import clear_up_on_sigterm

app = typer.Typer(
    name="gangway",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serves a language model that needs more than one machine.",
)


def main() -> None:
    """The entry point: the only place where errors become exit codes."""
    sys.excepthook = show_uncaught
    clear_up_on_sigterm()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit code."""
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="gangway", standalone_mode=False)
    except TyperException as error:
        return _complain(error.format_message(), error.exit_code)
    except ConfigError as error:
        return _complain(str(error), 2)
    except GangwayError as error:
        return _complain(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    return code if isinstance(code, int) else 0


def _complain(sentence: str, code: int) -> int:
    print(f"gangway: {' '.join(shown_in(sentence).split())}", file=sys.stderr)  # noqa: T201
    return code


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"gangway {version('gangway')}")
        raise typer.Exit


@app.callback()
def gangway(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


def add_commands(to: typer.Typer, found: Iterable[EntryPoint]) -> None:
    """Add what other packages offer: a function as a command, a `typer.Typer` as a group of them, by its entry's name.

    What cannot be loaded says so when it is called, and disturbs no other command.
    """
    for entry in found:
        try:
            offered = entry.load()
        except Exception as error:
            offered = _unusable(entry, error)
        if isinstance(offered, typer.Typer):
            to.add_typer(offered, name=entry.name)
        else:
            to.command(entry.name)(offered)


def _unusable(entry: EntryPoint, error: Exception) -> Callable[[], None]:
    sentence = f"{entry.name} cannot be loaded from {entry.value}: {type(error).__name__}: {error}"

    def command() -> None:
        raise OperatorError(sentence)

    command.__doc__ = "Not usable: it cannot be loaded."
    return command


for _command in (serve, status, bench, drill):
    app.command()(_command)
app.command("demo-model")(demo_model)
app.command()(batch)
add_commands(app, entry_points(group="gangway.commands"))

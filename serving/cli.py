"""The command line. Parses, calls, and turns an error into one sentence and an exit code; nothing else.

Exit codes: 0 done, 1 the operator must act, 2 wrong usage or configuration. Heavy modules are imported by
the command that needs them, so that `gangway --help` answers at once.
"""

import json
import sys
import threading
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from serving.addresses import reason, shown_in
from serving.config import Config, dump_config, load_config
from serving.errors import ConfigError, GangwayError, OperatorError
from serving.generation_config import describe_defaults
from serving.logs import show_uncaught
from serving.runtime.signals import clear_up_on_sigterm, stop_on_signals

app = typer.Typer(
    name="gangway",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serves a language model that needs more than one machine.",
)

TABLE_WIDTH = 140
"""Columns of the benchmark's table; a narrower terminal wraps lines, which is better than cut numbers."""

DEFAULT_URL = "http://127.0.0.1:8000"

Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as in a.b=c.")]
ApiKey = Annotated[str | None, typer.Option(envvar="GANGWAY_API_KEY", help="Bearer key, if the server asks for one.")]


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


@app.command()
def serve(
    config: Annotated[Path, typer.Argument(help="Configuration file, such as configs/local.yaml.")],
    overrides: Overrides = [],  # noqa: B006  typer's way of saying "none given"
    address: Annotated[str | None, typer.Option(help="Ray cluster; else RAY_ADDRESS, else one is started.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take over from the command that serves this name on the cluster.")
    ] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print every setting and stop.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the logs of all processes.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON, as observe.log_json=true does.")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let anyone who reaches http.host ask.")] = False,
) -> None:
    """Serve the model until Ctrl-C or SIGTERM."""
    flags = {"observe.log_json=true": log_json, "security.insecure=true": insecure}
    settings = load_config(config, [*overrides, *(override for override, given in flags.items() if given)])
    if print_config:
        typer.echo(dump_config(settings) + describe_defaults(settings.model), nl=False)
        return
    from serving.api.tracing import require_opentelemetry
    from serving.runtime import preflight
    from serving.runtime.environment import cluster_address, ray_environment

    embedded = cluster_address(address) is None
    preflight.require_keys_for_limits(settings.security)
    settings = preflight.absolute_paths(settings)
    preflight.check_model_files(settings, all_here=embedded)
    if settings.observe.otlp_endpoint is not None:
        require_opentelemetry()
    if embedded:
        preflight.require_free_port(settings.http.host, settings.http.port)
    with ray_environment(settings, embedded=embedded) as folder:
        _launch(settings, address, folder=folder, replace=replace, verbose=verbose)


def _launch(config: Config, address: str | None, *, folder: Path | None, replace: bool, verbose: bool) -> None:
    """Imports Ray, so its environment must have been set."""
    from serving.runtime.launch import Launch
    from serving.runtime.progress import make_display
    from serving.runtime.session import ray_session

    stopping, hurry = threading.Event(), threading.Event()
    session = ray_session(address, config, verbose=verbose, folder=folder)
    with make_display(verbose=verbose, as_json=config.observe.log_json) as display, session as embedded:
        stop_on_signals(stopping, hurry)
        Launch(config, display, stopping, hurry, embedded=embedded, replace=replace).run()


@app.command()
def status(
    url: Annotated[str, typer.Option(help="Where the server answers.")] = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print what /v1/status says.")] = False,
    api_key: ApiKey = None,
) -> None:
    """Show the group: its state, its ranks, and what they are doing."""
    report = _get(url, "/v1/status", api_key)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    from serving.runtime.progress import print_status

    print_status(report)


def _get(url: str, path: str, api_key: str | None) -> Any:
    """The JSON that a server answers with. Raises `OperatorError` when there is none."""
    import httpx

    from serving.direct import direct

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with httpx.Client(headers=headers, timeout=5.0, mounts=direct(url)) as client:
            answer = client.get(url.rstrip("/") + path)
        answer.raise_for_status()
    except httpx.HTTPStatusError as error:
        raise OperatorError(f"{url} answers {error.response.status_code}: {error.response.text[:200]}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OperatorError(f"no server answers at {url}: {reason(error, url)}") from error
    return answer.json()


@app.command()
def bench(
    url: Annotated[str, typer.Option(help="Where the server answers.")] = DEFAULT_URL,
    model: Annotated[str | None, typer.Option(help="Model to ask for; the server's own when not given.")] = None,
    concurrency: Annotated[str, typer.Option(help="Requests at a time, one level after the other.")] = "1,8,32",
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of each prompt.")] = 64,
    output_tokens: Annotated[int, typer.Option(min=1, help="Length of each answer.")] = 64,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests per level; three a place if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Measure growth instead, and draw it into this file.")] = None,
    api_key: ApiKey = None,
) -> None:
    """Measure a running server: random prompts of one length, answers of one length."""
    import asyncio

    from serving.bench import run_bench

    try:
        levels = [int(level) for level in concurrency.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"--concurrency {concurrency}: expected numbers such as 1,8,32") from error
    name = model or _get(url, "/v1/models", api_key)["data"][0]["id"]
    if plot is not None:
        try:
            from serving.growth import check_picture, draw, run_growth
        except ImportError as error:
            raise OperatorError(f"a plot needs matplotlib, pip install 'gangway[plot]': {error}") from error
        check_picture(plot)
        draw(asyncio.run(run_growth(url, name, api_key=api_key)), plot)
        return
    measuring = run_bench(url, name, levels, prompt_tokens, output_tokens, requests_per_level=requests, api_key=api_key)
    report = asyncio.run(measuring)
    _show(report, as_json)


def _show(report: Any, as_json: bool) -> None:
    """Print what was measured: a dataclass with a table of itself."""
    from dataclasses import asdict

    from rich.console import Console

    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
    else:
        Console(width=max(Console().width, TABLE_WIDTH)).print(report.table())


@app.command()
def drill(
    url: Annotated[str, typer.Option(help="Where the server answers.")] = DEFAULT_URL,
    fault: Annotated[str | None, typer.Option(help="kill-rankN, stop-rankN (SIGSTOP), kill-all or poison.")] = None,
    command: Annotated[str | None, typer.Option(help="A command that does the fault, instead of --fault.")] = None,
    heal: Annotated[str | None, typer.Option(help="The command that undoes it, at the end of each round.")] = None,
    heal_after: Annotated[float | None, typer.Option(min=0, help="Heal that many seconds after the fault.")] = None,
    times: Annotated[int, typer.Option(min=1, help="Rounds.")] = 10,
    streams: Annotated[int, typer.Option(min=1, help="Requests at a time that stream.")] = 16,
    plain: Annotated[int, typer.Option(min=0, help="Requests at a time that do not.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=2, help="Length of each answer.")] = 200,
    budget: Annotated[float | None, typer.Option(help="Most seconds to the first resumed token (median).")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Most seconds of a request, and of recovery.")] = 300.0,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for a server that is starting.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rounds as JSON.")] = False,
    api_key: ApiKey = None,
) -> None:
    """Do a fault to a running server under load, and see that nothing is lost and nothing comes out wrong.

    The server should run with --set fault.max_restarts=100: else it has failed for good after five in ten minutes.
    """
    import asyncio

    from serving.drill.faults import make_fault
    from serving.drill.poison import PoisonFault
    from serving.drill.rounds import DrillPlan, run_drill
    from serving.drill.watch import DrillError, make_client

    url = url.rstrip("/")
    plan = DrillPlan(
        url=url,
        fault=make_fault(fault, command, heal, PoisonFault(lambda: make_client(url, api_key, timeout))),
        times=times,
        streams=streams,
        plain=plain,
        max_tokens=max_tokens,
        heal_after_s=heal_after,
        timeout_s=timeout,
        wait_s=wait,
        api_key=api_key,
    )
    report = asyncio.run(run_drill(plan, lambda line: typer.echo(line, err=True)))
    _show(report, as_json)
    if verdict := report.verdict(budget):
        raise DrillError(verdict)


@app.command("demo-model")
def demo_model(folder: Annotated[Path, typer.Argument(help="Where to write it.")]) -> None:
    """Fetch the small demo model and write it as a Hugging Face folder."""
    from serving.demo_model import write_demo_model
    from serving.homes import settle

    settle()
    written = write_demo_model(folder)
    typer.echo(f"{folder}: {'written' if written else 'already there'}")


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


add_commands(app, entry_points(group="gangway.commands"))

if __name__ == "__main__":
    main()

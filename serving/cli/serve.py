"""`gangway serve`."""

import threading
from pathlib import Path
from typing import Annotated

import typer

from serving.cli.common import Overrides
from serving.config import Config, dump_config, load_config
from serving.generation_config import describe_defaults
from serving.runtime.command.signals import stop_on_signals


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
    from serving.runtime.command import preflight
    from serving.runtime.ray_cluster.environment import cluster_address, ray_environment

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
    from serving.runtime.command.display import make_display
    from serving.runtime.command.serve import Launch
    from serving.runtime.ray_cluster.session import ray_session

    stopping, hurry = threading.Event(), threading.Event()
    session = ray_session(address, config, verbose=verbose, folder=folder)
    with make_display(verbose=verbose, as_json=config.observe.log_json) as display, session as embedded:
        stop_on_signals(stopping, hurry)
        Launch(config, display, stopping, hurry, embedded=embedded, replace=replace).run()

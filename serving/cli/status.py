"""`gangway status`."""

import json
from typing import Annotated

import typer

from serving.cli.common import DEFAULT_URL, ApiKey, Url, get


def status(
    url: Url = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print what /v1/status says.")] = False,
    api_key: ApiKey = None,
) -> None:
    """Show the group: its state, its ranks, and what they are doing."""
    report = get(url, "/v1/status", api_key)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    from serving.runtime.command.display import print_status

    print_status(report)

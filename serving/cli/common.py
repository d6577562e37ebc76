"""What several commands share: options, and how they ask a server and show what it says."""

import json
from typing import Annotated, Any

import typer

from serving.addresses import reason
from serving.errors import OperatorError

TABLE_WIDTH = 140
"""Columns of the benchmark's table; a narrower terminal wraps lines, which is better than cut numbers."""

DEFAULT_URL = "http://127.0.0.1:8000"

Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as in a.b=c.")]
ApiKey = Annotated[str | None, typer.Option(envvar="GANGWAY_API_KEY", help="Bearer key, if the server asks for one.")]
Url = Annotated[str, typer.Option(help="Where the server answers.")]


def get(url: str, path: str, api_key: str | None) -> Any:
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


def show(report: Any, as_json: bool) -> None:
    """Print what was measured: a dataclass with a table of itself."""
    from dataclasses import asdict

    from rich.console import Console

    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
    else:
        Console(width=max(Console().width, TABLE_WIDTH)).print(report.table())

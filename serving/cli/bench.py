"""`gangway bench`."""

from pathlib import Path
from typing import Annotated

import typer

from serving.cli.common import DEFAULT_URL, ApiKey, Url, get, show
from serving.errors import OperatorError


def bench(
    url: Url = DEFAULT_URL,
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

    from serving.tools.bench.runner import run_bench

    try:
        levels = [int(level) for level in concurrency.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"--concurrency {concurrency}: expected numbers such as 1,8,32") from error
    name = model or get(url, "/v1/models", api_key)["data"][0]["id"]
    if plot is not None:
        try:
            from serving.tools.bench.scaling import check_picture, draw, run_growth
        except ImportError as error:
            raise OperatorError(f"a plot needs matplotlib, pip install 'gangway[plot]': {error}") from error
        check_picture(plot)
        draw(asyncio.run(run_growth(url, name, api_key=api_key)), plot)
        return
    measuring = run_bench(url, name, levels, prompt_tokens, output_tokens, requests_per_level=requests, api_key=api_key)
    report = asyncio.run(measuring)
    show(report, as_json)

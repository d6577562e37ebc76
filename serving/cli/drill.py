"""`gangway drill`."""

from typing import Annotated

import typer

from serving.cli.common import DEFAULT_URL, ApiKey, Url, show


def drill(
    url: Url = DEFAULT_URL,
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

    from serving.tools.drill.faults import make_fault
    from serving.tools.drill.poison import PoisonFault
    from serving.tools.drill.prober import DrillError, make_client
    from serving.tools.drill.runner import DrillPlan, run_drill

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
    show(report, as_json)
    if verdict := report.verdict(budget):
        raise DrillError(verdict)

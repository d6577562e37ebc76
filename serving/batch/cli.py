"""The command `gangway batch`. What imports Ray is imported once its environment is set."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from serving.batch.ledger import open_ledger
from serving.batch.source import open_source
from serving.config import load_config
from serving.errors import OperatorError

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells have it."""


def batch(
    config: Annotated[Path, typer.Argument(help="Configuration file, such as configs/local.yaml.")],
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="JSON Lines: a file, or an address that fsspec knows.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="File to write; appears when all rows are done.")],
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as in a.b=c.")
    ] = [],  # noqa: B006  typer's way of saying "none given"
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what another job has left there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster; else RAY_ADDRESS, else one is started.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the logs of all processes.")] = False,
) -> None:
    """Run every row of a file through the model, and end. The same command goes on where it was broken off."""
    from serving.runtime.environment import cluster_address, ray_environment
    from serving.runtime.preflight import absolute_paths, check_model_files

    if "://" in str(output) or str(output).count(":/"):
        raise OperatorError(f"cannot write {output}: the output must be a local path")
    settings = absolute_paths(load_config(config, overrides))
    embedded = cluster_address(address) is None
    with ray_environment(embedded=embedded) as folder:
        from serving.batch.display import Meter, make_batch_display
        from serving.batch.launch import (
            BatchGroup,
            Interrupted,
            batch_config,
            job_key,
            output_folder_exists,
            run_batch,
        )
        from serving.runtime.session import ray_session

        settings = batch_config(settings)
        output_folder_exists(output)
        check_model_files(settings, all_here=embedded)
        rows = open_source(source, settings.http.max_body_bytes)
        with open_ledger(output, job_key(settings, rows), resume=resume, overwrite=overwrite) as ledger:
            if ledger is None:
                typer.echo(f"{output} is complete; there is nothing left to do")
                return
            meter = Meter(ledger.progress, rows.size)
            with make_batch_display(meter, rows.size, verbose=verbose) as display:
                session = ray_session(address, settings, verbose=verbose, folder=folder)
                try:
                    with session as own, BatchGroup(settings, embedded=own) as group:
                        asyncio.run(run_batch(settings, rows, ledger, group, display, meter))
                except Interrupted:
                    display.say(f"interrupted; {ledger.progress.rows} rows are kept, the same command goes on")
                    raise typer.Exit(INTERRUPTED) from None
                display.say(f"{output}: {meter.summary(ledger.progress)}")

"""`gangway batch`: its options alone, so that the command line's help imports nothing large."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def batch(
    config: Annotated[Path, typer.Argument(help="Configuration file, such as configs/local.yaml.")],
    source: Annotated[str, typer.Argument(metavar="INPUT", help="JSON Lines or *.parquet: a file, folder or address.")],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="The same to write; appears when all rows are done.")],
    column: Annotated[str | None, typer.Option(help="Column of a Parquet input with the prompts or chats.")] = None,
    parameters: Annotated[str | None, typer.Option(help="Of a Parquet input's rows, as JSON.")] = None,
    task: Annotated[Literal["generate", "embed"], typer.Option(help="Texts, or vectors of the inputs.")] = "generate",
    pooling: Annotated[
        Literal["mean", "last", "first"] | None, typer.Option(help="Of --task embed: mean if not given.")
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Of --task embed: vectors of length 1.")] = False,
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as in a.b=c.")
    ] = [],  # noqa: B006  typer's way of saying "none given"
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what another job left, or was changed.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster; else RAY_ADDRESS, else one is started.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the logs of all processes.")] = False,
) -> None:
    """Run every row of a file through the model, and end. The same command goes on where it was broken off."""
    from serving.batch.command import make_task, run_job

    wanted = make_task(task, pooling, normalize)
    run_job(
        config,
        source,
        output,
        wanted,
        column=column,
        parameters=parameters,
        overrides=overrides,
        resume=resume,
        overwrite=overwrite,
        address=address,
        verbose=verbose,
    )

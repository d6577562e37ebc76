"""What `gangway batch` does. What imports Ray is imported once its environment is set."""

import asyncio
from pathlib import Path, PurePosixPath
from typing import Literal

import typer

from serving.addresses import reason
from serving.batch.arguments import hide_arguments
from serving.batch.input.jsonl import Source, open_source
from serving.batch.input.parquet import SUFFIX, ParquetSource, open_parquet
from serving.batch.job_config import batch_config, job_key
from serving.batch.location import UNUSABLE, Place, files_at, locate, name_of
from serving.batch.output.parquet import columns_of, is_output_of, join, require_new_columns
from serving.batch.output.writer import Ledger, open_ledger
from serving.batch.rows import Task
from serving.config import Config, load_config
from serving.errors import OperatorError

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells have it."""


def run_job(
    config: Path,
    source: str,
    output: str,
    wanted: Task,
    *,
    column: str | None,
    parameters: str | None,
    overrides: list[str],
    resume: bool,
    overwrite: bool,
    address: str | None,
    verbose: bool,
) -> None:
    """Run every row of `source` through the model."""
    from serving.runtime.command.preflight import absolute_paths, check_model_files
    from serving.runtime.ray_cluster.environment import cluster_address, ray_environment

    place = _open_output(output)
    settings = absolute_paths(load_config(config, overrides))
    embedded = cluster_address(address) is None
    with ray_environment(None, embedded=embedded) as folder:
        hide_arguments()
        settings = batch_config(settings)
        check_model_files(settings, all_here=embedded)
        rows = _open_input(source, place, settings, wanted, column, parameters)
        job = job_key(settings, rows, wanted)
        lines = place.beside("lines") if _is_parquet(place) else place
        if lines != place and place.size() is not None and not overwrite:
            _require_own(place, job)
            _remove(lines)
            typer.echo(f"{place} is complete; there is nothing left to do")
            return
        with open_ledger(lines, job, resume=resume, overwrite=overwrite) as ledger:
            if ledger is not None:
                _run(settings, rows, ledger, place, address, folder, wanted, verbose=verbose)
            elif lines == place:
                typer.echo(f"{place} is complete; there is nothing left to do")
            if isinstance(rows, ParquetSource) and lines != place:
                join(rows, lines, place, job, columns_of(wanted))
                _remove(lines)


def make_task(
    task: Literal["generate", "embed"], pooling: Literal["mean", "last", "first"] | None, normalize: bool
) -> Task:
    """Raises `typer.BadParameter` for options that do not go together."""
    if task == "generate" and (pooling is not None or normalize):
        raise typer.BadParameter("--pooling and --normalize are of --task embed")
    return Task(task == "embed", pooling or "mean", normalize)


def _open_output(address: str) -> Place:
    """Raise `OperatorError` for an output that could never be written."""
    try:
        place = locate(address)
        if place.system.isdir(place.path):
            raise OperatorError(f"cannot write {place}: it is a folder")
    except UNUSABLE as error:
        raise OperatorError(f"cannot write {name_of(address)}: {reason(error, address)}") from error
    if place.is_local and not Path(place.path).parent.is_dir():
        raise OperatorError(f"cannot write {place}: there is no folder {Path(place.path).parent}")
    return place


def _is_parquet(output: Place) -> bool:
    return output.path.endswith(SUFFIX)


def _open_input(
    source: str, output: Place, settings: Config, task: Task, column: str | None, parameters: str | None
) -> Source | ParquetSource:
    files = [file.place.path for file in files_at(source)]
    if files != [locate(source).path] and PurePosixPath(files[0]).parent == PurePosixPath(output.path).parent:
        raise OperatorError(f"cannot write {output}: it would be one of the files of {name_of(source)}")
    parquet = [file.endswith(SUFFIX) for file in files]
    if any(parquet) and not all(parquet):
        raise OperatorError(f"cannot read {name_of(source)}: some of its files are Parquet, and some are not")
    if all(parquet):
        rows = open_parquet(source, column, parameters)
        if _is_parquet(output):
            require_new_columns(rows, columns_of(task))
        return rows
    if column is not None or parameters is not None:
        raise OperatorError("--column and --parameters are for a Parquet input; a line has its own")
    if _is_parquet(output):
        raise OperatorError(f"cannot write {output}: JSON Lines become JSON Lines, and only Parquet becomes Parquet")
    return open_source(source, settings.http.max_body_bytes)


def _require_own(output: Place, job: str) -> None:
    if not is_output_of(output, job):
        raise OperatorError(f"{output} exists, and is not what this job wrote; --overwrite replaces it")


def _remove(lines: Place) -> None:
    """The answers that a Parquet output was joined from. A kill may have left them, or the checkpoint alone."""
    lines.remove()
    lines.beside("progress").remove()


def _run(
    settings: Config,
    rows: Source | ParquetSource,
    ledger: Ledger,
    output: Place,
    address: str | None,
    folder: Path | None,
    task: Task,
    *,
    verbose: bool,
) -> None:
    """Imports Ray, so its environment must have been set."""
    from serving.batch.display import Meter, make_batch_display
    from serving.batch.runner import BatchGroup, Interrupted, run_batch
    from serving.runtime.ray_cluster.session import ray_session

    meter = Meter(ledger.progress, rows.size)
    with make_batch_display(meter, rows.size, verbose=verbose) as display:
        session = ray_session(address, settings, verbose=verbose, folder=folder)
        try:
            with session as embedded, BatchGroup(settings, embedded=embedded) as group:
                asyncio.run(run_batch(settings, rows, ledger, group, display, meter, task))
        except Interrupted:
            display.say(f"interrupted; {ledger.progress.rows} rows are kept, the same command goes on")
            raise typer.Exit(INTERRUPTED) from None
        display.say(f"{output}: {meter.summary(ledger.progress)}")

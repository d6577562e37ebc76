"""Parquet in and out: a column of prompts or chats is asked, and every other column is carried through.

While the job runs its answers are lines like any others, since a Parquet file counts for nothing before its end is
written. When all are there, input and answers are joined batch by batch into the output, which carries the job's key in
its metadata: so a second start knows it. Neither is ever read whole.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from serving.batch.places import UNREADABLE, locate, version_of
from serving.batch.rows import Row, Task
from serving.errors import OperatorError

SUFFIX = ".parquet"
ANSWERS = pa.schema(
    [
        ("prediction", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("error", pa.string()),
    ]
)
"""The columns that are added; a row has either a prediction or an error."""
VECTORS = pa.schema([("embedding", pa.list_(pa.float32())), ("prompt_tokens", pa.int64()), ("error", pa.string())])
"""The same of embeddings."""

_BATCH_ROWS = 256
GROUP_ROWS = 8192
GROUP_BYTES = 32 << 20
"""A row group of the output ends with the batch that reaches either."""
_JOB = b"gangway.job"


@dataclass(frozen=True, slots=True)
class ParquetSource:
    """A column of a Parquet file that is there. Offsets are rows."""

    address: str
    size: int
    """Rows."""
    version: str
    column: str
    parameters: dict[str, Any]
    """The same for every row."""

    def rows(self, number: int, offset: int) -> Iterator[Row]:
        """The rows from `offset` on, the first of which is row `number`. Raises `OperatorError`."""
        with _opened(self.address) as file:
            for value in _values(file, self.column, offset):
                yield Row(number, msgspec.json.encode(self._request(value)), number + 1)
                number += 1

    def _request(self, value: Any) -> dict[str, Any]:
        if isinstance(value, list):
            value = [[{key: part for key, part in message.items() if part is not None} for message in value]]
        return {"inputs": value, "parameters": self.parameters}

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All columns."""
        with _opened(self.address) as file:
            yield from file.iter_batches(_BATCH_ROWS)


def open_parquet(address: str, column: str | None, parameters: str | None) -> ParquetSource:
    """See that the column is there, and holds what can be asked. `parameters`: JSON. Raises `OperatorError`."""
    with _opened(address) as file:
        names, rows, schema = file.schema_arrow.names, file.metadata.num_rows, file.schema_arrow
        version = f"{rows}/{file.metadata.serialized_size}/{version_of(locate(address).info())}"
    if column is None or column not in names:
        asked = "a Parquet input needs --column" if column is None else f"{address} has no column {column}"
        raise OperatorError(f"{asked}; its columns: {', '.join(names)}")
    if not _askable(schema.field(column).type):
        raise OperatorError(f"{address}: column {column} holds {schema.field(column).type}, not prompts or chats")
    if not rows:
        raise OperatorError(f"{address} has no rows")
    return ParquetSource(address, rows, version, column, _parameters(parameters))


def columns_of(task: Task) -> pa.Schema:
    """The columns that the task adds."""
    return VECTORS if task.embed else ANSWERS


def require_new_columns(source: ParquetSource, added: pa.Schema) -> None:
    """Raise `OperatorError` when a column of the input has the name of one that is added."""
    with _opened(source.address) as file:
        taken = [name for name in added.names if name in file.schema_arrow.names]
    if taken:
        raise OperatorError(f"{source.address} has a column {taken[0]}, which the output adds: rename it first")


def is_output_of(output: Path, job: str) -> bool:
    """Whether this job wrote that file."""
    try:
        metadata = pq.read_schema(output).metadata or {}
    except (pa.ArrowException, OSError):
        return False
    return bool(metadata.get(_JOB) == job.encode())


def join(source: ParquetSource, answers: Path, output: Path, job: str, added: pa.Schema) -> None:
    """Write the output, whose name appears when it is whole. Raises `OperatorError`."""
    fresh = output.with_name(f"{output.name}.new")
    try:
        with fresh.open("wb") as stream, answers.open("rb") as lines:
            _join(source, lines, stream, job, added)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(output)
    except (pa.ArrowException, OSError) as error:
        fresh.unlink(missing_ok=True)
        raise OperatorError(f"cannot write {output}: {error}") from error


def _join(source: ParquetSource, lines: BinaryIO, stream: BinaryIO, job: str, added: pa.Schema) -> None:
    with _opened(source.address) as file:
        carried = file.schema_arrow
    schema = pa.schema([*carried, *added], metadata={**(carried.metadata or {}), _JOB: job.encode()})
    with pq.ParquetWriter(stream, schema) as writer:
        for group in _groups(_answered(source, lines, schema, added)):
            writer.write_table(pa.Table.from_batches(group, schema))


def _answered(source: ParquetSource, lines: BinaryIO, schema: pa.Schema, added: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Each batch with its answers' columns."""
    for batch in source.batches():
        answers = pa.RecordBatch.from_pylist([_answer(next(lines)) for _ in range(batch.num_rows)], added)
        yield pa.RecordBatch.from_arrays([*batch.columns, *answers.columns], schema=schema)


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """What becomes a row group each."""
    group: list[pa.RecordBatch] = []
    for batch in batches:
        group.append(batch)
        if sum(len(one) for one in group) >= GROUP_ROWS or sum(one.nbytes for one in group) >= GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def _answer(line: bytes) -> dict[str, Any]:
    tree = msgspec.json.decode(line)
    if "error" in tree:
        return {"error": tree["error"]["message"]}
    (output,) = tree["outputs"]
    if "embedding" in output:
        return {"embedding": output["embedding"], "prompt_tokens": tree["usage"]["prompt_tokens"]}
    usage = {name: output["usage"][name] for name in ("prompt_tokens", "completion_tokens")}
    return {"prediction": output["text"], "finish_reason": output["finish_reason"], **usage}


@contextmanager
def _opened(address: str) -> Iterator[pq.ParquetFile]:
    try:
        # Without pre_buffer=False the first batch would wait until all row groups are in memory.
        with locate(address).open() as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, *UNREADABLE) as error:
        raise OperatorError(f"cannot read {address}: {error}") from error


def _values(file: pq.ParquetFile, column: str, offset: int) -> Iterator[Any]:
    """From row `offset` on; row groups before it are not read."""
    groups: list[int] = []
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if groups or offset < rows:
            groups.append(group)
        else:
            offset -= rows
    for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=[column]) if groups else ():
        yield from batch.column(0).slice(min(offset, batch.num_rows)).to_pylist()
        offset = max(0, offset - batch.num_rows)


def _askable(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return bool(pa.types.is_struct(kind.value_type))
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _parameters(text: str | None) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise OperatorError(f"--parameters must be a JSON object: {error}") from error

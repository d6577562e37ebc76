"""Parquet in and out: a column of prompts or chats is asked, and every other column is carried through.

While the job runs its answers are lines like any others, since a Parquet file counts for nothing before its end is
written. When all are there, input and answers are joined batch by batch into the output, which carries the job's key in
its metadata: so a second start knows it. Neither is ever read whole.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from serving.batch.places import UNUSABLE, File, Place, files_at, name_of
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
    """A column of Parquet files that are there, one after the other. Offsets are rows of them all."""

    files: tuple[File, ...]
    counts: tuple[int, ...]
    """Rows of each."""
    column: str
    parameters: dict[str, Any]
    """The same for every row."""

    @property
    def size(self) -> int:
        """Rows."""
        return sum(self.counts)

    def facts(self) -> list[object]:
        """What the rows depend on."""
        return [self.column, self.parameters, *(file.facts() for file in self.files)]

    def rows(self, number: int, offset: int) -> Iterator[Row]:
        """The rows from `offset` on, the first of which is row `number`. Raises `OperatorError`."""
        for file, count in zip(self.files, self.counts, strict=True):
            if offset < count:
                with _opened(file.place) as table:
                    for value in _values(table, self.column, offset):
                        yield Row(number, msgspec.json.encode(self._request(value)), number + 1)
                        number += 1
            offset = max(0, offset - count)

    def _request(self, value: Any) -> dict[str, Any]:
        if isinstance(value, list):
            value = [[{key: part for key, part in message.items() if part is not None} for message in value]]
        return {"inputs": value, "parameters": self.parameters}

    def schema(self) -> pa.Schema:
        """Of all columns."""
        with _opened(self.files[0].place) as table:
            return table.schema_arrow

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All columns."""
        for file in self.files:
            with _opened(file.place) as table:
                yield from table.iter_batches(_BATCH_ROWS)


def open_parquet(address: str, column: str | None, parameters: str | None) -> ParquetSource:
    """See that the column is there, and holds what can be asked. `parameters`: JSON. Raises `OperatorError`."""
    name, files, counts = name_of(address), files_at(address), list[int]()
    schema = None
    for file in files:
        with _opened(file.place) as table:
            counts.append(table.metadata.num_rows)
            schema = schema or table.schema_arrow
            if not table.schema_arrow.equals(schema):
                raise OperatorError(f"{file.place} has other columns than {files[0].place}: they must be the same")
    assert schema is not None, "files_at finds one at least"
    if column is None or column not in schema.names:
        asked = "a Parquet input needs --column" if column is None else f"{name} has no column {column}"
        raise OperatorError(f"{asked}; its columns: {', '.join(schema.names)}")
    if not _askable(schema.field(column).type):
        raise OperatorError(f"{name}: column {column} holds {schema.field(column).type}, not prompts or chats")
    if not sum(counts):
        raise OperatorError(f"{name} has no rows")
    return ParquetSource(files, tuple(counts), column, _parameters(parameters))


def columns_of(task: Task) -> pa.Schema:
    """The columns that the task adds."""
    return VECTORS if task.embed else ANSWERS


def require_new_columns(source: ParquetSource, added: pa.Schema) -> None:
    """Raise `OperatorError` when a column of the input has the name of one that is added."""
    taken = [name for name in added.names if name in source.schema().names]
    if taken:
        raise OperatorError(f"the input has a column {taken[0]}, which the output adds: rename it first")


def is_output_of(output: Place, job: str) -> bool:
    """Whether this job wrote that file."""
    try:
        with output.open() as stream:
            metadata = pq.read_schema(stream).metadata or {}
    except UNUSABLE:
        return False
    return bool(metadata.get(_JOB) == job.encode())


def join(source: ParquetSource, answers: Place, output: Place, job: str, added: pa.Schema) -> None:
    """Write the output, whose name appears when it is whole. Raises `OperatorError`."""
    try:
        with answers.open() as lines, output.create() as stream:
            _join(source, lines, stream, job, added)
    except UNUSABLE as error:
        raise output.cannot("write", error) from error


def _join(source: ParquetSource, lines: BinaryIO, stream: BinaryIO, job: str, added: pa.Schema) -> None:
    carried = source.schema()
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
def _opened(place: Place) -> Iterator[pq.ParquetFile]:
    try:
        # Without pre_buffer=False the first batch would wait until all row groups are in memory.
        with place.open() as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
            yield file
    except UNUSABLE as error:
        raise place.cannot("read", error) from error


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

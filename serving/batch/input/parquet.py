"""Parquet in: a column of prompts or chats is asked, and every other column is carried through."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from serving.batch.location import UNUSABLE, File, Place, files_at, name_of
from serving.batch.rows import Row
from serving.errors import OperatorError

SUFFIX = ".parquet"
_BATCH_ROWS = 256


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

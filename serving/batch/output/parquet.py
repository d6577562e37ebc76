"""Parquet out: input and answers joined batch by batch, when all answers are there.

While the job runs its answers are lines like any others, since a Parquet file counts for nothing before its end is
written. The output carries the job's key in its metadata, by which a second start knows it. Neither is ever read whole.
"""

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from serving.batch.input.parquet import ParquetSource
from serving.batch.location import UNUSABLE, Place
from serving.batch.rows import Task
from serving.errors import OperatorError

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

GROUP_ROWS = 8192
GROUP_BYTES = 32 << 20
"""A row group of the output ends with the batch that reaches either."""
_JOB = b"gangway.job"


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

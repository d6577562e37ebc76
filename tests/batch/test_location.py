"""Inputs that lie elsewhere: the same rows as from a local file, at every place that a stream is begun."""

import io
from collections.abc import Iterator
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from serving.batch.input.jsonl import open_source
from serving.batch.input.parquet import open_parquet
from serving.errors import OperatorError
from tests.batch.bucket import Bucket, open_bucket

LINES = b"".join(b'{"inputs": "row %d"}\n' % number for number in range(500))


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    table = io.BytesIO()
    pq.write_table(pa.table({"ask": [f"row {number}" for number in range(500)]}), table, row_group_size=100)
    with open_bucket({"in.jsonl": LINES, "in.parquet": table.getvalue()}) as bucket:
        yield bucket


def same_from_everywhere(address: str, local: Path) -> None:
    """Rows, and their ends, are those of a local file; begun anywhere the stream goes on from there."""
    local.write_bytes(LINES)
    wanted, source = list(open_source(str(local), 100).rows(0, 0)), open_source(address, 100)
    assert list(source.rows(0, 0)) == wanted
    for place in (1, 250, 499):
        assert list(source.rows(place, wanted[place - 1].end)) == wanted[place:]


def test_an_address_of_fsspec_is_read(tmp_path: Path) -> None:
    with fsspec.open("memory://folder/in.jsonl", "wb") as stream:
        stream.write(LINES)
    same_from_everywhere("memory://folder/in.jsonl", tmp_path / "in.jsonl")


def test_an_address_that_only_arrow_has_a_client_for_is_read(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="s3fs"):
        fsspec.core.url_to_fs("s3://bucket/in.jsonl")
    same_from_everywhere(bucket.address("in.jsonl"), tmp_path / "in.jsonl")


def test_parquet_is_read_from_there_too(bucket: Bucket) -> None:
    source = open_parquet(bucket.address("in.parquet"), "ask", None)
    assert source.size == 500
    assert b"row 321" in next(source.rows(321, 321)).data


def test_what_is_not_there_is_a_sentence(bucket: Bucket) -> None:
    with pytest.raises(OperatorError, match="cannot read s3://"):
        open_source(bucket.address("nothing.jsonl"), 100)
    with pytest.raises(OperatorError, match="cannot read s3://"):
        open_parquet(bucket.address("nothing.parquet"), "ask", None)

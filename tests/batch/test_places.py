"""Inputs that lie elsewhere: the same rows as from a local file, at every place that a stream is begun."""

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from serving.batch.parquet import open_parquet
from serving.batch.source import open_source
from serving.errors import OperatorError

LINES = b"".join(b'{"inputs": "row %d"}\n' % number for number in range(500))


class Bucket(ThreadingHTTPServer):
    """As much of S3 as reading needs, for Arrow's own client: HEAD, and GET of a range."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files

    def address(self, name: str) -> str:
        return f"s3://key:secret@bucket/{name}?scheme=http&region=here&endpoint_override=127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Bucket

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        content = self.server.files.get(self.path.removeprefix("/bucket/"))
        begin, end, wanted = 0, len(content or b""), self.headers.get("Range")
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            begin, end = int(first), min(end, int(last) + 1)
        self.send_response(404 if content is None else 206 if wanted else 200)
        if content is not None:
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.send_header("ETag", f'"{len(content)}"')
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if content is not None and self.command == "GET":
            self.wfile.write(content[begin:end])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        """Nothing is said."""


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    table = io.BytesIO()
    pq.write_table(pa.table({"ask": [f"row {number}" for number in range(500)]}), table, row_group_size=100)
    with Bucket({"in.jsonl": LINES, "in.parquet": table.getvalue()}) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


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

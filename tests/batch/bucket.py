"""As much of S3 as Arrow's own client asks of it (https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations.html).

HEAD, GET of a range, PUT, copying, DELETE of one and of many, uploads in parts, and listing. One bucket; no signature
is checked.
"""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote
from xml.sax.saxutils import escape

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


@dataclass
class Bucket:
    """`files`: key to content; an upload is among them once it is completed."""

    files: dict[str, bytes]
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    port: int = 0
    refuses: bool = False
    """Nothing may be written."""

    def address(self, name: str) -> str:
        return f"s3://key:secret@bucket/{name}?scheme=http&region=here&endpoint_override=127.0.0.1:{self.port}"

    def app(self) -> Starlette:
        routes = [
            Route("/bucket", self.get, methods=["GET", "HEAD"]),
            Route("/bucket", self.post, methods=["POST"]),
            Route("/bucket/{key:path}", self.get, methods=["GET", "HEAD"]),
            Route("/bucket/{key:path}", self.put, methods=["PUT"]),
            Route("/bucket/{key:path}", self.post, methods=["POST"]),
            Route("/bucket/{key:path}", self.delete, methods=["DELETE"]),
        ]
        return Starlette(routes=routes)

    async def get(self, request: Request) -> Response:
        if "list-type" in request.query_params:
            return self.listed(request.query_params.get("prefix", ""), request.query_params.get("delimiter", ""))
        key = request.path_params.get("key")
        if key is None:
            return Response()
        if key not in self.files:
            return Response(status_code=404)
        content, wanted = self.files[key], request.headers.get("range")
        headers = {"last-modified": "Thu, 01 Jan 2026 00:00:00 GMT", "etag": f'"{len(content)}"'}
        if wanted is None:
            return Response(content, headers=headers)
        first, last = wanted.removeprefix("bytes=").split("-")
        return Response(content[int(first) : int(last) + 1], 206, headers)

    async def put(self, request: Request) -> Response:
        key, query, body = request.path_params["key"], request.query_params, await body_of(request)
        if self.refuses:
            return Response(status_code=403)
        if "uploadId" in query:
            self.uploads[query["uploadId"]][int(query["partNumber"])] = body
        elif source := request.headers.get("x-amz-copy-source"):
            self.files[key] = self.files[unquote(source).removeprefix("/").removeprefix("bucket/")]
            return xml("CopyObjectResult", "<ETag>x</ETag>")
        else:
            self.files[key] = body
        return Response(headers={"etag": "x"})

    async def post(self, request: Request) -> Response:
        query, body = request.query_params, await body_of(request)
        if "uploads" in query:
            upload = str(len(self.uploads))
            self.uploads[upload] = {}
            return xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
        if "delete" in query:
            for name in re.findall(r"<Key>(.*?)</Key>", body.decode()):
                self.files.pop(name, None)
            return xml("DeleteResult", "")
        parts = self.uploads[query["uploadId"]]
        self.files[request.path_params["key"]] = b"".join(parts[number] for number in sorted(parts))
        return xml("CompleteMultipartUploadResult", "<ETag>x</ETag>")

    async def delete(self, request: Request) -> Response:
        self.files.pop(request.path_params["key"], None)
        return Response(status_code=204)

    def listed(self, prefix: str, delimiter: str) -> Response:
        """Keys of that prefix, and what they share up to the delimiter."""
        entries: dict[str, None] = {}
        for key, content in sorted(self.files.items()):
            if key.startswith(prefix):
                head, found, _ = key.removeprefix(prefix).partition(delimiter or "\0")
                folder = f"<CommonPrefixes><Prefix>{escape(prefix + head)}/</Prefix></CommonPrefixes>"
                size = f"<Size>{len(content)}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                entries[folder if found else f"<Contents><Key>{escape(key)}</Key>{size}</Contents>"] = None
        return xml("ListBucketResult", f"<KeyCount>{len(entries)}</KeyCount>{''.join(entries)}")


def xml(root: str, content: str) -> Response:
    return Response(f"<{root}>{content}</{root}>", media_type="application/xml")


async def body_of(request: Request) -> bytes:
    """Out of the chunks with which a client signs it as it goes."""
    body = await request.body()
    if request.headers.get("content-encoding") != "aws-chunked":
        return body
    content = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        count = int(size.partition(b";")[0], 16)
        if not count:
            break
        content, body = content + body[:count], body[count + 2 :]
    return content


@contextmanager
def open_bucket(files: dict[str, bytes]) -> Iterator[Bucket]:
    """Served while the block runs."""
    bucket = Bucket(files)
    server = uvicorn.Server(uvicorn.Config(bucket.app(), log_level="warning", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bucket.port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield bucket
        finally:
            server.should_exit = True
            thread.join()

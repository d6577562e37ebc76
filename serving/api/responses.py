"""JSON answers."""

import msgspec
from starlette.responses import Response


def json_response(answer: msgspec.Struct) -> Response:
    """Status 200 with a struct as its body."""
    return Response(msgspec.json.encode(answer), media_type="application/json")

"""One row: a line of the input to the request it stands for, and the request's answer to a line of the output.

A row is a request like any other: what it may hold and what is said of a wrong one is the business of `serving.api`.
What differs is kept out of the output, so that it is the same byte for byte however often the job was broken off: the
time, random ids, and how much of a prompt happened to be in the cache. A row without a seed gets one from its number.
Pure: no I/O.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

EMBEDDINGS = "/v1/embeddings"
URLS = frozenset({"/v1/completions", "/v1/chat/completions", EMBEDDINGS})
"""What a row in OpenAI's batch format may ask for."""

_NO_STREAMS = "stream: a batch does not stream; leave it out"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the input."""

    number: int
    """Counted from 0."""
    data: bytes
    end: int
    """Where the next row begins in the input, in bytes."""
    cut: bool = False
    """The line is longer than a request may be, and its end was not kept."""


@dataclass(frozen=True, slots=True)
class Task:
    """What native rows ask for; a row in OpenAI's format says so itself."""

    embed: bool = False
    """A vector, as of `POST /v1/embeddings`, in place of a text."""
    pooling: Literal["mean", "last", "first"] = "mean"
    normalize: bool = False


GENERATE = Task()


@dataclass(frozen=True, slots=True)
class Result:
    """A line of the output, and what it counts for."""

    line: bytes
    """With its newline."""
    failed: bool
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """What to ask the application, and how the row wants its answer."""

    number: int
    path: str
    body: bytes
    openai: bool = False
    custom_id: str | None = None
    refusal: str | None = None
    """The row asks for nothing that can be asked: a sentence."""

    def result(self, status: int, answer: bytes) -> Result:
        """The row's line for an answer of the application."""
        tree = msgspec.json.decode(answer)
        failed = status >= 400
        usages = [_forget_the_cache(part["usage"]) for part in (tree, *tree.get("outputs", ())) if "usage" in part]
        return Result(
            msgspec.json.encode(self._shaped(status, tree)) + b"\n",
            failed,
            sum(usage["prompt_tokens"] for usage in usages),
            sum(usage.get("completion_tokens", 0) for usage in usages),
        )

    def refused(self) -> Result:
        """The row's line when nothing was asked."""
        detail = {"type": "invalid_request_error", "message": self.refusal, "param": None, "code": None}
        return self.result(400, msgspec.json.encode({"error": detail}))

    def _shaped(self, status: int, tree: dict[str, Any]) -> dict[str, Any]:
        if self.openai:
            return self._openai_answer(status, tree)
        if "data" in tree:
            vectors = [{"embedding": one["embedding"]} for one in tree["data"]]
            return {"outputs": vectors, "usage": tree["usage"], "model": tree["model"]}
        return {name: value for name, value in tree.items() if name != "id"}

    def _openai_answer(self, status: int, tree: dict[str, Any]) -> dict[str, Any]:
        """As https://platform.openai.com/docs/api-reference/batch/request-output has it."""
        name = f"batch_req_{self.number}"
        body = tree | {key: value for key, value in (("id", name), ("created", 0)) if key in tree}
        response = {"status_code": status, "request_id": name, "body": body}
        return {"id": name, "custom_id": self.custom_id, "response": response, "error": None}


def read_row(row: Row, task: Task = GENERATE) -> Call:
    """What a line asks for. Native, `{"inputs", "parameters"}`, unless it has OpenAI's `custom_id` or `body`."""
    if row.cut:
        return Call(row.number, "", b"", refusal="the line is longer than http.max_body_bytes")
    try:
        tree = msgspec.json.decode(row.data)
    except msgspec.DecodeError as error:
        return Call(row.number, "", b"", refusal=f"the line is not valid JSON: {error}")
    if isinstance(tree, dict) and ("custom_id" in tree or "body" in tree):
        return _openai_call(row.number, tree)
    if not isinstance(tree, dict):
        return Call(row.number, "", b"", refusal="the line must be a JSON object")
    if task.embed:
        return _embedding_call(row.number, tree, task)
    if isinstance(parameters := tree.get("parameters") or {}, dict):
        tree["parameters"] = _seeded(parameters, row.number)
    return Call(row.number, "/predict", msgspec.json.encode(tree), refusal=_NO_STREAMS if tree.get("stream") else None)


def _embedding_call(number: int, tree: dict[str, Any], task: Task) -> Call:
    refusal, parameters = None, tree.get("parameters") or {}
    if unknown := tree.keys() - {"inputs", "parameters"}:
        refusal = f"{min(unknown)}: unknown field; known here: inputs, parameters"
    elif "inputs" not in tree:
        refusal = "inputs: required"
    elif not isinstance(parameters, dict):
        refusal = "parameters: must be an object"
    elif fixed := parameters.keys() & {"input", "encoding_format"}:
        refusal = f"{min(fixed)}: no parameter of a row; its vectors are lists"
    if refusal is not None:
        return Call(number, "", b"", refusal=refusal)
    asked = {"pooling": task.pooling, "normalize": task.normalize, **parameters, "input": tree["inputs"]}
    return Call(number, EMBEDDINGS, msgspec.json.encode(asked))


def _openai_call(number: int, tree: dict[str, Any]) -> Call:
    custom_id, url, body = tree.get("custom_id"), tree.get("url"), tree.get("body")
    refusal = None
    if not isinstance(custom_id, str):
        refusal, custom_id = "custom_id: must be a string", None
    elif unknown := tree.keys() - {"custom_id", "method", "url", "body"}:
        refusal = f"{min(unknown)}: unknown field; known here: custom_id, method, url, body"
    elif tree.get("method", "POST") != "POST":
        refusal = "method: must be POST"
    elif not isinstance(url, str) or url not in URLS:
        refusal = f"url: must be one of {', '.join(sorted(URLS))}"
    elif not isinstance(body, dict):
        refusal = "body: must be an object"
    elif body.get("stream"):
        refusal = _NO_STREAMS
    if refusal is not None or not isinstance(body, dict):
        return Call(number, "", b"", True, custom_id, refusal)
    asked = body if url == EMBEDDINGS else _seeded(body, number)
    return Call(number, str(url), msgspec.json.encode(asked), True, custom_id)


def _seeded(fields: dict[str, Any], number: int) -> dict[str, Any]:
    return fields if fields.get("seed") is not None else fields | {"seed": row_seed(number)}


def row_seed(number: int) -> int:
    """The seed of a row that names none: a function of its number, 63 bits, unrelated between rows."""
    return int.from_bytes(hashlib.blake2b(f"row/{number}".encode(), digest_size=8).digest(), "big") >> 1


def _forget_the_cache(usage: dict[str, Any]) -> dict[str, Any]:
    usage.pop("prompt_tokens_details", None)
    return usage

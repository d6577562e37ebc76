"""The OpenAPI 3.1 document, made from the request models and the answer structs."""

from typing import Any

import msgspec
from pydantic.json_schema import models_json_schema

from serving.api.answers import (
    ChatChunk,
    ChatCompletion,
    Completion,
    EmbeddingList,
    ErrorAnswer,
    Health,
    ModelCard,
    ModelList,
    PredictEvent,
    Prediction,
    Status,
)
from serving.api.neutral import Fields
from serving.api.schema import ChatRequest, CompletionRequest, EmbeddingRequest, PredictRequest

_REF = "#/components/schemas/{name}"
_REQUESTS: tuple[type[Fields], ...] = (PredictRequest, CompletionRequest, ChatRequest, EmbeddingRequest)
_ANSWERS: tuple[type[msgspec.Struct], ...] = (
    Prediction,
    PredictEvent,
    Completion,
    ChatCompletion,
    ChatChunk,
    EmbeddingList,
    ModelList,
    ModelCard,
    Health,
    Status,
    ErrorAnswer,
)
_ERRORS = {
    400: "The request is wrong; `param` names the field.",
    401: "The bearer key is missing or unknown.",
    403: "Without keys: a foreign Host or Origin.",
    404: "No such model.",
    408: "The body came too slowly, or `timeout_s` passed while the request waited.",
    413: "The body is too large.",
    429: "The queue is full, or the API key is at its limit.",
    500: "An error inside the server.",
    503: "The group is not there.",
    504: "`timeout_s` passed.",
}
_POST_ERRORS = tuple(_ERRORS)

Json = dict[str, Any]


def document(title: str, version: str) -> Json:
    """The whole document, JSON-ready."""
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],
    }


def _schemas() -> Json:
    _, requests = models_json_schema(
        [(model, "validation") for model in _REQUESTS], ref_template=_REF.replace("{name}", "{model}")
    )
    _, answers = msgspec.json.schema_components(_ANSWERS, ref_template=_REF)
    return {**requests["$defs"], **answers}


def _paths() -> Json:
    return {
        "/predict": {"post": _post("Continue prompts and chats", PredictRequest, Prediction, PredictEvent)},
        "/v1/completions": {"post": _post("Continue prompts", CompletionRequest, Completion, Completion)},
        "/v1/chat/completions": {"post": _post("Answer a chat", ChatRequest, ChatCompletion, ChatChunk)},
        "/v1/embeddings": {"post": _post("Vectors of texts", EmbeddingRequest, EmbeddingList)},
        "/v1/models": {"get": _get("The served model", ModelList, 401)},
        "/v1/models/{model}": {"get": _get("One model", ModelCard, 401, 404) | {"parameters": [_MODEL_PARAMETER]}},
        "/healthz": {"get": _get("Does the gateway live?", Health)},
        "/readyz": {"get": _get("Does a generation compute?", Health, 503)},
        "/v1/status": {"get": _get("The group, rank by rank", Status, 401)},
        "/metrics": {"get": _page("Prometheus metrics", "text/plain")},
        "/openapi.json": {"get": _page("This document", "application/json")},
        "/": {"get": _page("Console", "text/html")},
    }


_MODEL_PARAMETER = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}


def _post(
    summary: str, body: type[Fields], answer: type[msgspec.Struct], event: type[msgspec.Struct] | None = None
) -> Json:
    content = {"application/json": {"schema": _ref(answer)}}
    if event is not None:
        content["text/event-stream"] = {"itemSchema": _event(event)}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(body)}}},
        "responses": {
            "200": {"description": "The answer, or a stream of it." if event else "The answer.", "content": content}
        }
        | _errors(_POST_ERRORS),
    }


def _event(event: type[msgspec.Struct]) -> Json:
    """An event as OpenAPI 3.2 describes one: its data is a string, here with JSON in it but for the one at the end."""
    inside = {"anyOf": [_ref(event), _ref(ErrorAnswer)]}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": inside}
    done = {"type": "string", "const": "[DONE]"}
    return {"type": "object", "required": ["data"], "properties": {"data": {"anyOf": [data, done]}}}


def _get(summary: str, answer: type[msgspec.Struct], *errors: int) -> Json:
    content = {"application/json": {"schema": _ref(answer)}}
    return {"summary": summary, "responses": {"200": {"description": summary, "content": content}} | _errors(errors)}


def _page(summary: str, media_type: str) -> Json:
    content: Json = {media_type: {}}
    return {"summary": summary, "responses": {"200": {"description": summary, "content": content}} | _errors((401,))}


def _errors(statuses: tuple[int, ...]) -> Json:
    content = {"application/json": {"schema": _ref(ErrorAnswer)}}
    return {str(status): {"description": _ERRORS[status], "content": content} for status in statuses}


def _ref(model: type) -> Json:
    return {"$ref": _REF.format(name=model.__name__)}

"""What pydantic finds wrong with a body, as one sentence for the person who wrote it, which begins with the field."""

import difflib
from collections.abc import Mapping

from pydantic_core import ErrorDetails

from serving.api.neutral import Fields, known
from serving.api.schema import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    PredictParameters,
    PredictRequest,
    StreamOptions,
    TextPart,
)
from serving.errors import InvalidRequest

_SHOWN_CHARACTERS = 100
"""Of a field's name that the caller has made up."""
_SHAPES = {
    "prompt": "must be a string, a list of strings, a list of token ids, or a list of lists of token ids",
    "input": "must be a string, a list of strings, a list of token ids, or a list of lists of token ids",
    "inputs": "must be a string, or a list of strings and chats (a chat is a list of messages)",
    "stop": "must be a string or a list of strings",
    "content": "must be a string or a list of text parts",
}
"""What a field with several shapes takes."""
_MAPPINGS = frozenset({"logit_bias", "metadata"})
"""Fields whose keys are the caller's own."""
_SENTENCES = {
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be over {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "less_than": "must be under {lt}",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "mapping_type": "must be an object",
    "missing": "is required",
    "model_type": "must be an object",
    "none_required": "is not supported; leave it out",
    "string_pattern_mismatch": "its keys must be token ids",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must not be empty",
    "string_type": "must be a string",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must not be empty",
}
"""Kind of error -> what is said of it. The only pattern that there is, is that of a token id."""
_MODELS: tuple[type[Fields], ...] = (
    PredictRequest,
    PredictParameters,
    CompletionRequest,
    EmbeddingRequest,
    ChatRequest,
    ChatMessage,
    TextPart,
    StreamOptions,
)
_NAMES = frozenset(name for model in _MODELS for name in model.model_fields)
_INNER: Mapping[str, type[Fields]] = {
    "parameters": PredictParameters,
    "messages": ChatMessage,
    "inputs": ChatMessage,
    "content": TextPart,
    "stream_options": StreamOptions,
}
"""Field -> what the objects in it are."""


def complaint(errors: list[ErrorDetails], model: type[Fields]) -> InvalidRequest:
    """The complaint that helps most: of a value out of bounds rather than of a shape that was not meant."""
    telling = [error for error in errors if not error["type"].endswith("_type")]
    error = max(telling, key=lambda error: len(error["loc"])) if telling else errors[0]
    if error["type"] == "json_invalid":
        reason = error["msg"].removeprefix("Invalid JSON: ")
        return InvalidRequest(f"the body is not valid JSON: {reason}", code="invalid_json")
    path = _path(error)
    if not path:
        return InvalidRequest("the body must be a JSON object")
    param = ".".join(path)
    return InvalidRequest(f"{param}: {_sentence(error, path, model, ambiguous=not telling)}", param=param)


def _path(error: ErrorDetails) -> list[str]:
    """The fields and places on the way, without pydantic's names for the branches of a union."""
    *way, last = error["loc"] or ("",)
    path = [str(part) for part in way if isinstance(part, int) or part in _NAMES]
    if last != "" and (isinstance(last, int) or last in _NAMES or error["type"] == "extra_forbidden"):
        path.append(str(last)[:_SHOWN_CHARACTERS])
    return path


def _sentence(error: ErrorDetails, path: list[str], model: type[Fields], *, ambiguous: bool) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown field{_nearest(path[-1], model, path)}"
    field = next((part for part in reversed(path) if not part.isdecimal()), path[-1])
    if ambiguous and field in _SHAPES:
        return _SHAPES[field]
    told = _SENTENCES[kind].format(**context) if kind in _SENTENCES else error["msg"]
    return f"its values {told}" if field in _MAPPINGS and error["loc"][-1] not in {field, "[key]"} else told


def _nearest(unknown: str, model: type[Fields], path: list[str]) -> str:
    here = _model_at(path[:-1], model)
    near = difflib.get_close_matches(unknown, here.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known(here))}"


def _model_at(path: list[str], model: type[Fields]) -> type[Fields]:
    for part in path:
        model = _INNER.get(part, model)
    return model
